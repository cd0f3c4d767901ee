from .benchmark import BenchmarkSettings as BenchmarkSettings
from .benchmark import bench as bench
from .measuring import BenchmarkRow as BenchmarkRow
from .tuning import Tuning as Tuning
from .tuning import TuningRow as TuningRow
from .tuning import tune as tune
