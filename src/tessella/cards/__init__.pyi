from .comparison import ModelFilter as ModelFilter
from .comparison import ModelRow as ModelRow
from .comparison import compare_models as compare_models
from .page import comparison_page as comparison_page
from .writer import card as card
