"""Everything that determines a converted or built model, from which the names of cached results are derived."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from .._version import __version__
from ..data.decode import Pixels
from ..data.spec import InputSpec
from ..fingerprint import config_text
from ..machine import versions
from .plan import Plan

if TYPE_CHECKING:
    from ..weights.network import Network


def array_hash(array: Pixels) -> str:
    """Return the SHA-256 of the type, shape and values of an array (...,)."""
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()


def code_hash() -> str:
    """Return the SHA-256 of the code of `models` and `engine`: after a change, models are converted again."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for path in sorted(path for layer in ("models", "engine") for path in (package / layer).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def conversion_facts(
    network: Network, plan: Plan, size: tuple[int, int], spec: InputSpec | None, **more: object
) -> dict[str, object]:
    """Return everything that determines a converted model; its name in the cache is derived from it.

    more: further inputs of a conversion, such as the versions of converters.
    """
    changes = dict(changes=network.changes) if network.changes else {}
    return (
        changes
        | dict(
            architecture=network.arch,
            config=config_text(network.config),
            pool=network.global_pool,
            weights=network.weights_hash,
            spec=spec.to_cfg() if spec else None,
            size=size,
            precision=plan.precision,
            layout=plan.layout,
            code=code_hash(),
        )
        | (dict(tessella=__version__, torch=versions().get("torch")) | more)
    )
