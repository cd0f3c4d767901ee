from .open import open_engine as open_engine
from .plan import ENGINES as ENGINES
from .plan import PRECISIONS as PRECISIONS
from .plan import Choice as Choice
from .plan import Plan as Plan
from .plan import make_plan as make_plan
