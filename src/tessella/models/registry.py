"""The registry: a table of all architectures, and the function that builds one with random weights.

`tessella.create_model` adds pretrained weights.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import UsageError
from .base import Config, ImageModel
from .configs import CONFIGS, CONSTRUCTOR_ERRORS, configure, not_buildable
from .configs.convit import ConViTConfig
from .configs.convmixer import ConvMixerConfig
from .configs.crossvit import CrossViTConfig
from .configs.mixer import MixerConfig
from .convit import ConViT
from .convmixer import ConvMixer
from .crossvit import CrossViT
from .mixer import MlpMixer

FAMILIES: dict[type, Callable[[Config], ImageModel]] = {  # the class of the model, by that of its config
    ConvMixerConfig: ConvMixer,
    ConViTConfig: ConViT,
    MixerConfig: MlpMixer,
    CrossViTConfig: CrossViT,
}
ARCHITECTURES: dict[str, tuple[Callable[[Config], ImageModel], Config]] = {
    name: (FAMILIES[type(config)], config) for name, config in CONFIGS.items()
}


def build(arch: str, **overrides: object) -> ImageModel:
    """Build the architecture `arch` with random weights.

    overrides: new values for fields of its config; None keeps the field.
    Raises UsageError: `unknown_model` with similar names, `bad_argument` with the known fields.
    """
    config = configure(arch, **overrides)
    try:
        model = FAMILIES[type(config)](config)
    except UsageError:
        raise
    except CONSTRUCTOR_ERRORS as error:  # the memory is not sufficient, for example
        raise not_buildable(arch, overrides, error) from error
    model.arch = arch
    return model
