from .metrics import ServeMetrics as ServeMetrics
from .service import Answer as Answer
from .service import Readiness as Readiness
from .service import Service as Service
from .settings import ServeSettings as ServeSettings
