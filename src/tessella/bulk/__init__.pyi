from .events import RunEvent, RunProgress, RunRemark, ShardFinished
from .integrity import Damage, IntegrityReport, repair, verify
from .prometheus import PrometheusFile
from .ray.driver import Cluster
from .resume import AutomaticEngine
from .run_folder import read_rows
from .runner import RunSummary, run
from .settings import RunSettings

__all__ = [
    "AutomaticEngine",
    "Cluster",
    "Damage",
    "IntegrityReport",
    "PrometheusFile",
    "RunEvent",
    "RunProgress",
    "RunRemark",
    "RunSettings",
    "RunSummary",
    "ShardFinished",
    "read_rows",
    "repair",
    "run",
    "verify",
]
