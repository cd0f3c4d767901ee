"""All checkpoints beside each other: accuracy on six test sets, cost, and speed as published and on this machine.

Neither NumPy nor PyTorch is imported, so that `tessella list` starts fast.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from ..arguments import suggestion
from ..checks import checked
from ..engine.tuned import TunedRecord, all_tuned
from ..errors import UsageError
from ..fingerprint import config_text
from ..models.configs import configure
from ..text import any_of
from ..weights.catalogue import CATALOGUE, MODULES, published_accuracy
from ..weights.costs import ModelFacts, read_costs
from ..weights.names import find_models, headline_accuracy
from ..weights.origins import FAMILIES
from ..weights.sources import default_args

SETS = {  # the six test sets: name in the table of published accuracy -> short name
    "imagenet": "ImageNet-1k",
    "imagenet-real": "ReaL",
    "imagenetv2-matched-frequency": "V2",
    "sketch": "Sketch",
    "imagenet-a": "A",
    "imagenet-r": "R",
}
Machine: TypeAlias = Literal["rtx-4090", "i9-10940x", "here"]
MACHINES: dict[Machine, tuple[str, str]] = {  # (short name, conditions)
    "rtx-4090": (
        "RTX 4090",
        "NVIDIA RTX 4090, mixed precision, batch size 1,024, PyTorch 2.9.1, published with timm",
    ),
    "i9-10940x": (
        "i9-10940X",
        "Intel Core i9-10940X, float32, batch size 1, torch.compile of PyTorch 2.4, published with timm",
    ),
    "here": ("this machine", "measured on this machine by `tessella tune`, in its fastest settings"),
}
SortKey: TypeAlias = Literal["name", "accuracy", "params", "gmacs", "activations", "size", "speed"]
_TABLE = Path(__file__).parent.parent / "weights" / "tables" / "published_speed.csv"


class MeasuredSpeed(NamedTuple):
    """A speed in images per second, and how it was measured."""

    images_per_second: float
    conditions: str


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """A checkpoint in the comparison.

    weights: "built in", the name on the Hub, or "none". input_size: channels, height, width. accuracy: published top-1
    (%) by test set, the keys of SETS. top1: the accuracy by which models are sorted (%), and dataset, its test set.
    speeds: by machine, the keys of MACHINES. note: what is known to be wrong.
    """

    name: str
    family: str
    weights: str
    input_size: tuple[int, int, int]
    classes: int
    params: int
    macs: int
    activations: int
    licence: str
    note: str = ""
    top1: float | None = None
    dataset: str | None = None
    accuracy: Mapping[str, float] = field(default_factory=dict)
    speeds: Mapping[Machine, MeasuredSpeed] = field(default_factory=dict)

    @property
    def imagenet(self) -> float | None:
        """The published top-1 accuracy (%) on the validation images of ImageNet-1k."""
        return self.accuracy.get("imagenet")

    @property
    def size(self) -> int:
        """The longer side of the input in pixels."""
        return max(self.input_size[1:])

    def speed(self, machine: Machine) -> float | None:
        """Return the speed on a machine in images per second, None if it is not known."""
        found = self.speeds.get(machine)
        return found.images_per_second if found else None

    def as_dict(self) -> dict[str, object]:
        """Return the row for JSON."""
        return dict(
            name=self.name,
            family=self.family,
            weights=self.weights,
            input="x".join(map(str, self.input_size)),
            classes=self.classes,
            params=self.params,
            macs=self.macs,
            activations=self.activations,
            top1=self.top1,
            dataset=self.dataset,
            accuracy=dict(self.accuracy),
            speed={machine: speed.images_per_second for machine, speed in self.speeds.items()},
            licence=self.licence,
            note=self.note,
        )


@dataclass(frozen=True, kw_only=True)
class ModelFilter:
    """Which checkpoints are compared; None or "" compares all.

    family: the first word of an architecture, such as "convmixer". min_accuracy: top-1 (%) on ImageNet-1k; models
    without a published one are left out. max_params, max_gmacs: in millions and in billions. size: longer side of
    the input in pixels. license: as the checkpoints state it. pretrained: only those with weights.
    """

    family: str = ""
    min_accuracy: float | None = None
    max_params: float | None = None
    max_gmacs: float | None = None
    size: int | None = None
    license: str = ""
    pretrained: bool = False

    def accepts(self, row: ModelRow) -> bool:
        """Return whether the filter keeps a row."""
        top1 = row.imagenet
        return (
            (not self.family or row.name.startswith(f"{self.family.lower()}_"))
            and (self.min_accuracy is None or (top1 is not None and top1 >= self.min_accuracy))
            and (self.max_params is None or row.params <= self.max_params * 1e6)
            and (self.max_gmacs is None or row.macs <= self.max_gmacs * 1e9)
            and self.size in (None, row.size)
            and (not self.license or row.licence.lower() == self.license.lower())
        )

    def check(self) -> None:
        """Raise UsageError `bad_argument` for a family or a license that no checkpoint has."""
        licenses = tuple(sorted({row.license for row in CATALOGUE.values()}))
        for what, value, known in (("family", self.family, tuple(MODULES)), ("license", self.license, licenses)):
            if value and value.lower() not in known:
                hint = f"{suggestion([value], known)} expected {any_of(known)}".strip()
                raise UsageError("bad_argument", f"no checkpoint has the {what} {value!r}", hint=hint)


@checked
def compare_models(
    patterns: Sequence[str] = (),
    where: ModelFilter = ModelFilter(),
    *,
    sort: SortKey = "name",
    machine: Machine = "rtx-4090",
    measured: Mapping[str, MeasuredSpeed] | None = None,
) -> list[ModelRow]:
    """Return the checkpoints whose names match a pattern and that the filter keeps, best first.

    patterns: parts of names or globs; none for all. sort: `name` for natural order; accuracy and speed start with the
    highest value, everything else with the lowest, and unknown values are at the end. machine: whose speed is sorted
    by. measured: speeds by architecture for the machine "here" (None: the records of `tessella tune` on this machine).
    Raises UsageError: `unknown_model` or `no_weights` for patterns, `bad_argument` for the filter.
    """
    where.check()
    speeds = speeds_here() if measured is None else measured
    names = find_models(patterns, pretrained=where.pretrained)
    rows = [row for row in (_row_of(name, speeds) for name in names) if where.accepts(row)]
    if sort == "name":
        return rows
    value = _VALUES[sort]
    descending = sort in ("accuracy", "speed")
    known = [(value(row, machine), row) for row in rows]
    present = [(number, row) for number, row in known if number is not None]
    present.sort(key=lambda pair: pair[0], reverse=descending)  # stable: equal ones stay in natural order
    return [row for _, row in present] + [row for number, row in known if number is None]


_VALUES: dict[SortKey, Callable[[ModelRow, Machine], float | None]] = {
    "accuracy": lambda row, _: row.imagenet,
    "params": lambda row, _: row.params,
    "gmacs": lambda row, _: row.macs,
    "activations": lambda row, _: row.activations,
    "size": lambda row, _: row.size,
    "speed": lambda row, machine: row.speed(machine),
}


def _row_of(name: str, measured: Mapping[str, MeasuredSpeed]) -> ModelRow:
    checkpoint, facts = CATALOGUE[name], read_costs()[name]
    arch = checkpoint.architecture
    top1, dataset = headline_accuracy(name) or (None, None)
    accuracy = published_accuracy(name)
    speeds: dict[Machine, MeasuredSpeed] = {}
    if checkpoint.num_classes == 1000:  # published speeds are those of the models with 1,000 classes
        speeds = {machine: table[arch] for machine, table in published_speeds().items() if arch in table}
    if arch in measured:
        speeds["here"] = measured[arch]
    return ModelRow(
        name=name,
        family=FAMILIES[arch.partition("_")[0]][0],
        weights="built in" if checkpoint.file else checkpoint.hf_hub_id or "none",
        input_size=checkpoint.input_size,
        classes=checkpoint.num_classes,
        params=facts["params"],
        macs=facts["macs"],
        activations=facts["activations"],
        licence=checkpoint.license,
        note=checkpoint.note,
        top1=top1,
        dataset=dataset,
        accuracy={key: accuracy[key].top1 for key in SETS if key in accuracy},
        speeds=speeds,
    )


# --- speeds -----------------------------------------------------------------------------------------------------------


@functools.cache
def published_speeds() -> dict[Machine, dict[str, MeasuredSpeed]]:
    """Return the speeds that were published with timm, by machine and architecture."""
    speeds: dict[Machine, dict[str, MeasuredSpeed]] = {machine: {} for machine in MACHINES if machine != "here"}
    machines: dict[str, Machine] = {machine: machine for machine in speeds}
    with _TABLE.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            machine = machines[row["machine"]]
            speed = MeasuredSpeed(float(row["images_per_second"]), MACHINES[machine][1])
            speeds[machine][row["architecture"]] = speed
    return speeds


def speeds_here() -> dict[str, MeasuredSpeed]:
    """Return what `tessella tune` measured on this machine with the present versions, by architecture.

    Only models in their published form count. Of several records, the latest one does.
    """
    costs, speeds = read_costs(), dict[str, tuple[str, MeasuredSpeed]]()
    for record in all_tuned():
        speed = _speed_of(record, costs)
        if speed and record.date >= speeds.get(record.arch, ("",))[0]:
            speeds[record.arch] = (record.date, speed)
    return {arch: speed for arch, (_, speed) in speeds.items()}


def _speed_of(record: TunedRecord, costs: Mapping[str, ModelFacts]) -> MeasuredSpeed | None:
    """Return the speed of the winner for throughput, if the record is of this machine and of a published model."""
    threads, winner = record.conditions.get("threads"), record.winners.get("throughput")
    published = {
        (config_text(configure(row.architecture, **default_args(row.to_dict()))), *row.input_size[1:])
        for row in CATALOGUE.values()
        if row.architecture == record.arch and row.name in costs
    }
    if winner is None or not isinstance(threads, int) or not record.holds(threads):
        return None
    size = record.conditions["size"]
    if not isinstance(size, list) or (record.conditions["config"], *size) not in published:
        return None
    chosen = ("throughput", winner.engine, winner.precision, winner.layout, winner.streams, winner.batch_size)
    for row in record.table:
        keys = ("mode", "engine", "precision", "layout", "streams", "batch_size")
        speed = row.get("images_per_second")
        if tuple(row.get(key) for key in keys) == chosen and isinstance(speed, int | float):
            text = f"{winner.engine}, {winner.precision}, batch size {winner.batch_size}, {threads} threads"
            return MeasuredSpeed(float(speed), f"{text}, {record.date}")
    return None


def benchmark_speeds(path: Path) -> dict[str, MeasuredSpeed]:
    """Return the speeds of Tessella's default in a CSV file of `scripts/bench report`, by architecture.

    They are in float32, at the largest batch size of the file. Raises UsageError `bad_argument` for a file without
    such rows.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row.get("kind"), row.get("candidate")) == ("speed", "Tessella")]
    rows = [row for row in rows if row["precision"] == "float32" and row["value"]]
    if not rows:
        raise UsageError("bad_argument", f"{str(path)!r} has no speeds of Tessella in float32")
    batch = max(int(row["batch"]) for row in rows)
    return {
        row["model"]: MeasuredSpeed(
            float(row["value"]),
            f"Tessella, float32, batch size {batch}, {row['cpu']}, {row['threads']} threads, {row['date']}",
        )
        for row in rows
        if int(row["batch"]) == batch
    }


# --- output -----------------------------------------------------------------------------------------------------------


def pareto_front(rows: Iterable[ModelRow], machine: Machine) -> list[ModelRow]:
    """Return the rows for which no other one is at least as accurate and as fast, and better in one; fastest first.

    Rows without an ImageNet-1k accuracy or a speed are left out.
    """
    points = [(speed, top1, row) for row in rows if (speed := row.speed(machine)) and (top1 := row.imagenet)]
    front: list[ModelRow] = []
    last = (0.0, 0.0)  # speed and accuracy of the last row of the front; others may have the same
    for speed, top1, row in sorted(points, key=lambda point: (-point[0], -point[1])):
        if top1 > last[1] or (speed, top1) == last:
            front.append(row)
            last = (speed, top1)
    return front


def comparison_csv(rows: Iterable[ModelRow]) -> bytes:
    """Return the rows as a CSV file in UTF-8, with a header; numbers that are not known are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            *("name", "family", "weights", "height", "width", "classes", "params", "macs", "activations"),
            *(f"top1_{key}" for key in SETS),
            "top1_cifar10",
            *(f"images_per_second_{machine}" for machine in MACHINES),
            *("license", "note"),
        ]
    )
    for row in rows:
        cifar = row.top1 if row.dataset == "CIFAR-10" else None
        writer.writerow(
            [
                *(row.name, row.family, row.weights, *row.input_size[1:], row.classes),
                *(row.params, row.macs, row.activations),
                *(row.accuracy.get(key) for key in SETS),
                cifar,
                *(row.speed(machine) for machine in MACHINES),
                *(row.licence, row.note),
            ]
        )
    return text.getvalue().encode()
