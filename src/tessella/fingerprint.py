"""Fingerprints of models: everything that determines a model's results, hashed to 16 hex digits.

Runs, indexes and cached embeddings carry the fingerprint of the model that produced them, so that those of two models
are never mixed. It changes whenever the results may change, and for no other reason: moved code, renamed functions and
new config fields with a default leave it as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from _typeshed import DataclassInstance
    from numpy.typing import NDArray

    from .data.spec import InputSpec
    from .models.base import ImageModel

NUMERIC_CONTRACT = 2  # raised whenever the same model, image and settings may give other results than before

# Names of transforms in fingerprints, if they have changed since: "fast" decodes JPEGs at a smaller scale now
TRANSFORMS = {"fast": "fast 2"}

# Class names of configs, and the fields that their text always contains, in this order. Both are part of every
# fingerprint, so a line stays as it is. A field that is added to a class later does not belong here: the text contains
# it only if its value differs from its default, so that default has to stay the same, too.
CONFIG_FIELDS: dict[str, tuple[str, ...]] = {
    "ConvMixerConfig": (
        *("dim", "depth", "kernel_size", "patch_size", "act_layer"),
        *("in_chans", "num_classes", "global_pool", "drop_rate", "drop_path_rate"),
    ),
    "ConViTConfig": (
        *("embed_dim", "num_heads", "depth", "local_up_to_layer", "locality_strength", "use_pos_embed", "mlp_ratio"),
        *("qkv_bias", "patch_size", "img_size", "in_chans", "num_classes", "global_pool"),
        *("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
    ),
    "MixerConfig": (
        *("kind", "embed_dim", "num_blocks", "mlp_ratio", "patch_size", "img_size", "init_values", "stem_norm"),
        *("in_chans", "num_classes", "global_pool", "drop_rate", "proj_drop_rate", "drop_path_rate", "nlhb"),
    ),
    "CrossViTConfig": (
        *("embed_dim", "depth", "num_heads", "mlp_ratio", "multi_conv", "patch_size", "img_size", "img_scale"),
        *("crop_scale", "qkv_bias", "in_chans", "num_classes", "global_pool"),
        *("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
    ),
}


def config_text(config: DataclassInstance) -> str:
    """Return the text of a model's config for fingerprints, such as `ConvMixerConfig(dim=256, depth=8, ...)`.

    config: a dataclass. After the fields of CONFIG_FIELDS come those of the others whose value is not their default,
    sorted by name.
    """
    name = type(config).__name__
    always = CONFIG_FIELDS.get(name, ())
    added = [
        field.name
        for field in dataclasses.fields(config)
        if field.name not in always and getattr(config, field.name) != _default(field)
    ]
    fields = (f"{field}={getattr(config, field)!r}" for field in (*always, *sorted(added)))
    return f"{name}({', '.join(fields)})"


def _default(field: dataclasses.Field[object]) -> object:
    """Return the default value; MISSING, which equals no value, if there is none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


class Described(Protocol):
    """A model as data, such as `weights.network.Network`."""

    @property
    def arch(self) -> str:
        """The name of the architecture."""
        ...

    @property
    def config(self) -> Any:
        """The dataclass of its settings."""
        ...

    @property
    def global_pool(self) -> str:
        """How features become an embedding."""
        ...

    @property
    def weights_hash(self) -> str:
        """The result of `arrays_hash` for its weights."""
        ...

    @property
    def changes(self) -> str:
        """A hash of what it computes if its modules were changed by hand, else ""."""
        ...


def weights_hash(model: ImageModel | Described) -> str:
    """Return the SHA-256 of the names, types, shapes and values of the model's state, as 64 hex digits."""
    if not hasattr(model, "state_dict"):
        return model.weights_hash
    import torch

    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


def arrays_hash(tensors: Mapping[str, NDArray[np.generic]]) -> str:
    """Return the hash that `weights_hash` gives for a model with these arrays, of any shape, in this order."""
    digest = hashlib.sha256()
    for key, value in tensors.items():
        digest.update(f"{key} torch.{value.dtype} {value.shape}".encode())
        digest.update(value.tobytes() if not value.flags.c_contiguous else value.data)
    return digest.hexdigest()


def identify(model: ImageModel | Described, spec: InputSpec) -> dict[str, object]:
    """Return everything that determines the results of a model in float32, besides the settings of a Predictor."""
    changes = getattr(model, "changes", "")  # only a network notices them
    return (dict(changes=changes) if changes else {}) | dict(
        arch=model.arch,
        config=config_text(model.config),
        weights=weights_hash(model),
        pool=model.global_pool,
        spec=spec.to_cfg(),
        numeric_contract=NUMERIC_CONTRACT,
    )


def hash_identity(identity: Mapping[str, object], *, policy: str, transform: str, precision: str) -> str:
    """Return the fingerprint, 16 hex digits, of an identity together with the settings of a Predictor."""
    facts = dict(identity, policy=policy, transform=TRANSFORMS.get(transform, transform), precision=precision)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
