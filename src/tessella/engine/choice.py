"""The fastest engine for a model on this CPU, from a table of measured rates, and a rule for the size of requests.

`tables/rates.json` has rows that `scripts/bench rates` writes: what was fastest for a family of models, by class of
CPU, number of threads and mode. A row of a similar CPU is used if there is none for this one.
"""

from __future__ import annotations

import functools
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..machine import CPU_CLASSES, cpu_class
from ..models.configs import FamilyConfig
from ..models.configs.convit import ConViTConfig
from ..models.configs.convmixer import ConvMixerConfig

if TYPE_CHECKING:
    from ..weights.network import Network

TABLE = Path(__file__).parent / "tables" / "rates.json"
REQUEST_BYTES = 8 << 20  # of the largest activation; more does not stay in the cache of a core
DEFAULT = "openvino"


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row of the table: how fast an engine ran a family of models, relative to eager PyTorch in the same run."""

    family: str  # the first word of an architecture
    cpu: str  # one of `machine.CPU_CLASSES`
    threads: int
    mode: str
    engine: str
    ratio: float
    source: str  # the CPU and the date
    precision: str = "float32"
    layout: str = ""  # as in a plan
    streams: int = 1  # concurrent forward passes of the measurement; not used for the choice
    request: int = 0  # images per request of the measurement; not used for the choice


@functools.cache
def rates() -> tuple[Rate, ...]:
    """Return the rows of the table."""
    return tuple(msgspec.json.decode(TABLE.read_bytes(), type=list[Rate]))


def fastest_engine(network: Network | None, threads: int, mode: str) -> tuple[str, str]:
    """Return the fastest installed engine for a network on this CPU, and the reason.

    network: None for any. PyTorch is considered only if it is installed. threads, mode: as in a plan.
    """
    if not util.find_spec(DEFAULT):
        return "rewritten", "OpenVINO is not installed"
    family = "" if network is None else network.arch.partition("_")[0]
    installed = (DEFAULT, *(("rewritten",) if util.find_spec("torch") else ()))
    rows = [row for row in rates() if (row.family, row.precision, row.mode) == (family, "float32", mode)]
    rows = [row for row in rows if row.engine in installed]
    if not rows:
        return DEFAULT, "the fastest engine in all measurements so far; `tessella tune` compares others"
    here = CPU_CLASSES.index(cpu_class())

    def distance(row: Rate) -> tuple[int, int]:
        return abs(CPU_CLASSES.index(row.cpu) - here), abs(row.threads - threads)

    nearest = min(map(distance, rows))
    best = max((row for row in rows if distance(row) == nearest), key=lambda row: row.ratio)
    known = "on this class of CPU" if best.cpu == cpu_class() else f"on the most similar CPU measured ({best.cpu})"
    return best.engine, f"{best.ratio:.2f} times eager PyTorch {known}: {best.source}"


def measured_rate(network: Network, engine: str, precision: str, threads: int, mode: str) -> Rate | None:
    """Return the row of an engine and a precision for the family of the network on this class of CPU, or None.

    The row with the nearest number of threads is used. threads, mode: as in a plan.
    """
    family, here = network.arch.partition("_")[0], cpu_class()
    wanted = (family, here, engine, precision, mode)
    rows = [row for row in rates() if (row.family, row.cpu, row.engine, row.precision, row.mode) == wanted]
    return min(rows, key=lambda row: abs(row.threads - threads), default=None)


def images_per_request(config: FamilyConfig, size: tuple[int, int]) -> int:
    """Return how many images OpenVINO should compute at once, so that an activation of all of them stays in the cache.

    size: (height, width) of the images in pixels.
    """
    return 1 << max(0, (REQUEST_BYTES // activation_bytes(config, size)).bit_length() - 1)


def activation_bytes(config: FamilyConfig, size: tuple[int, int]) -> int:
    """Return the size of the largest float32 activation of one image in bytes, for images of (height, width) pixels."""
    patch = config.patch_size if isinstance(config.patch_size, int) else min(config.patch_size)
    tokens = max(1, size[0] // patch) * max(1, size[1] // patch)
    if isinstance(config, ConvMixerConfig):
        return 4 * tokens * config.dim
    width = config.embed_dim if isinstance(config.embed_dim, int) else config.embed_dim[0]
    heads = config.num_heads if isinstance(config, ConViTConfig) else 1
    ratio = config.mlp_ratio if isinstance(config.mlp_ratio, int | float) else max(config.mlp_ratio)
    return 4 * tokens * int(width * heads * ratio)
