import typing

from . import base as base
from . import convit as convit
from . import convmixer as convmixer
from . import crossvit as crossvit
from . import layers as layers
from . import mixer as mixer
from .base import ImageModel as ImageModel
from .convit import ConViT as ConViT
from .convit import ConVit as ConVit
from .convmixer import ConvMixer as ConvMixer
from .crossvit import CrossViT as CrossViT
from .crossvit import CrossVit as CrossVit
from .features import FeatureExtractor as FeatureExtractor
from .mixer import MlpMixer as MlpMixer
from .registry import ARCHITECTURES as ARCHITECTURES
from .registry import build as build

def __getattr__(name: str) -> typing.Any: ...  # timm's functions, of another package
