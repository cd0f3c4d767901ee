from .comparer import compare as compare
from .results import Comparison as Comparison
from .settings import ComparisonSettings as ComparisonSettings
from .writing import write_comparison as write_comparison
