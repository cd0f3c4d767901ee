"""Train a classifier: from labelled images to a folder that `tessella.load` and timm read, through any interruption.

    tessella train DATA --model NAME --out RUN

One loop, `train`. Its randomness is a function of the seed, the epoch, the image and the step, so a run that was killed
and goes on from its last checkpoint ends with the weights of one that was not. Several processes (torchrun) share every
batch. A RUN holds train.json (the config and the data's fingerprint), metrics.jsonl, skipped.jsonl, checkpoints/, and
at the end the model.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..atomic import write_atomic
from ..checks import checked
from ..data.augment import TrainTransform
from ..data.datasets import LabelledImages, open_split
from ..data.loader import Batch, EvalImages, Loader, Schedule, TrainImages, eval_batches
from ..engine import make_plan
from ..errors import ImageError, TrainingError, UsageError
from ..models.base import ImageModel
from ..predictor import Predictor
from ..weights.save import model_card, save_pretrained
from . import checkpoint
from .evaluate import measure
from .learner import Process, Step, Student, new_model, new_teacher
from .recipes import TrainConfig, learning_rate
from .report import write_report
from .stop import Stop

METRICS = "metrics.jsonl"
LOG_EVERY = 50  # steps to a row of metrics.jsonl, besides one an epoch
PATIENCE = 10  # steps in a row without a finite loss that "skip" goes past
Event = dict[str, Any]


@checked
def train(
    data: str | Path,
    out: str | Path,
    config: TrainConfig | None = None,
    *,
    val: str | Path | None = None,
    val_fraction: float = 0.1,
    device: str = "auto",
    workers: int | None = None,
    shard: bool = False,
    command: str = "",
    watch: Callable[[Event], None] = lambda event: None,
) -> Path:
    """Train config.model on the images of `data` and write the run to `out`; returns it.

    A run that is there already goes on, if its config and data are these. val: what is evaluated after each epoch;
    None takes the split beside the training images, or `val_fraction` of them. workers: processes that read and augment
    images; shard: divide the weights over the processes too (FSDP2). command: what to type for the same run, for its
    card and report. watch: gets a dict per step, epoch and remark.
    Raises UsageError (bad_argument, changed_run, output_failed), TrainingError (diverged, interrupted), WeightsError.
    """
    config = config or TrainConfig()
    process = Process.join(device)
    run = Path(out)
    log = Log(run, process, watch)
    learning, held_out = open_split(data, val=val, val_fraction=val_fraction)
    schedule = Schedule(len(learning), config.batch_size, config.seed, config.repeats, process.rank, process.world)
    check_data(config, learning, process)
    total = config.epochs * schedule.steps

    torch.manual_seed(config.seed)
    model, spec = new_model(config, learning.classes)
    student = Student(model.to(process.device), spec, config, process, shard)
    teacher = new_teacher(config, spec, len(learning.classes), process.device) if config.teacher else None
    claim(run, process, dict(config=config.as_dict(), data=learning.fingerprint, val=held_out.fingerprint))
    saved = checkpoint.read_newest(run, log.say)
    done, evaluated, best, sums = 0, 0, Best(), Sums()  # steps, epochs
    if saved is not None:
        done, evaluated = student.restore(saved), saved.state["evaluated"]
        best, sums = Best(**saved.state["best"]), Sums(**saved.state["sums"])
        log.say(f"going on after step {done} of {total}")
    log.trim(done, evaluated)

    workers = default_workers() if workers is None else workers
    pin = process.device.type == "cuda"
    transform = TrainTransform(spec, config.augmentation)
    loader = Loader(TrainImages(learning, transform, config.erasing, config.seed), workers, pin=pin)
    checker = Loader(EvalImages(held_out, spec), workers, pin=pin, persistent=False)
    bad_in_row, saved_at = 0, time.monotonic()

    def save() -> None:
        nonlocal saved_at
        tensors = student.tensors()  # of all processes, where the weights are divided
        if process.rank == 0:
            facts = dict(step=done, evaluated=evaluated, best=dataclasses.asdict(best), sums=dataclasses.asdict(sums))
            checkpoint.save(run, done + evaluated, tensors, facts | student.state())
            checkpoint.prune(run, config.keep, best.moment)
        saved_at = time.monotonic()

    with Stop() as stop:
        for epoch in range(evaluated, config.epochs):
            student.model.train()
            if config.part == "head":
                student.model.eval()  # the batch statistics of what does not learn stay
            started, before = time.monotonic(), done
            batches = schedule.epoch(epoch)[done - epoch * schedule.steps :]
            for batch in loader.run(batches):
                rate = learning_rate(config, done, total)
                overdue = time.monotonic() - saved_at > 60 * config.checkpoint_minutes
                step = student.step(batch, done, rate, teacher, stop.asked, overdue)
                done += 1
                log.skip(learning, batch, epoch)
                sums.add(step, config.batch_size)
                bad_in_row = 0 if step.taken else bad_in_row + 1
                if not step.taken:
                    log.say(f"step {done} was not taken: its loss is {step.loss}, its gradient's length {step.norm}")
                if bad_in_row > (PATIENCE if config.on_bad_loss == "skip" else 0):
                    raise TrainingError(
                        "diverged",
                        f"step {done}: the loss is {step.loss}, the length of its gradient {step.norm}; "
                        f"the checkpoints in {run} are from before it",
                        hint="try a lower --lr or --clip-norm 1, in a new folder",
                    )
                speed = (done - before) * config.batch_size / (time.monotonic() - started)
                event = dict(kind="step", step=done, steps=total, epoch=epoch, loss=step.loss, lr=rate)
                watch(event | dict(images_per_second=speed))
                if done % LOG_EVERY == 0 and step.taken:
                    log.keep(event)
                if step.stop:
                    save()
                    raise TrainingError(
                        "interrupted",
                        f"stopped by {stop.name or 'another process'} after step {done} of {total}; {run} is saved",
                        hint="run the same command again to go on",
                    )
                if step.overdue and done % schedule.steps:  # the end of an epoch is saved below
                    save()
            found = evaluate(student, checker, len(held_out))
            best = best.better(found["val_top1"], found["val_loss"], epoch, done + epoch + 1)
            rate = learning_rate(config, done - 1, total)
            log.write(dict(kind="epoch", epoch=epoch, step=done, lr=rate, **sums.row(), **found,
                           seconds=round(time.monotonic() - started, 1)))  # fmt: skip
            evaluated, sums = epoch + 1, Sums()
            save()
    if process.rank == 0:
        chosen = (best.epoch, best.moment) if config.select == "best" else (evaluated - 1, done + evaluated)
        finish(run, model, held_out, config, *chosen, command)
    process.leave()
    return run


def evaluate(student: Student, loader: Loader, count: int) -> dict[str, Any]:
    """top-1 and mean loss over the held-out images that can be read: each once, over all processes."""
    process = student.process
    hits = loss = images = errors = 0.0
    size = 4 * max(student.config.batch_size // process.world, 1)
    mine = eval_batches(count, size, process.rank, process.world)
    passes = math.ceil(math.ceil(count / process.world) / size)  # as many in each process, for divided weights
    for batch in loader.run([*mine, *[[]] * (passes - len(mine))]):
        logits = student.answers(batch)
        hits += int((logits.argmax(1) == batch.labels).sum())
        loss += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
        images += len(batch.labels)
        errors += len(batch.skipped)
    hits, loss, images, errors = process.total(hits, loss, images, errors)
    assert images + errors == count
    if not images:
        raise ImageError("unreadable", "none of the held-out images can be read", hint="give others with --val")
    return dict(val_top1=hits / images, val_loss=loss / images, val_images=int(images), val_errors=int(errors))


@dataclass
class Sums:
    """Of the steps of an epoch so far."""

    loss: float = 0.0
    images: int = 0
    skipped: int = 0  # images that could not be read
    bad: int = 0  # steps that were not taken

    def add(self, step: Step, batch_size: int) -> None:
        self.skipped += batch_size - step.images
        if not step.taken:
            self.bad += 1
            return
        self.loss += step.loss * step.images
        self.images += step.images

    def row(self) -> dict[str, Any]:
        return dict(loss=self.loss / max(self.images, 1), images=self.images, skipped=self.skipped, bad_steps=self.bad)


@dataclass(frozen=True)
class Best:
    """The best epoch so far, by top-1 of the held-out images, of equal ones by their loss."""

    top1: float = -1.0
    loss: float = 0.0
    epoch: int = -1
    moment: int = 0  # of its checkpoint

    def better(self, top1: float, loss: float, epoch: int, moment: int) -> Best:
        return Best(top1, loss, epoch, moment) if (top1, -loss) > (self.top1, -self.loss) else self


def check_data(config: TrainConfig, images: LabelledImages, process: Process) -> None:
    if len(images) < config.batch_size:
        raise UsageError(
            "bad_argument",
            f"there are {len(images)} images to learn from, less than one batch of {config.batch_size}",
            hint=f"--batch-size {max(len(images) // 4, 1)}",
        )
    if config.batch_size % process.world:
        raise UsageError(
            "bad_argument",
            f"a batch of {config.batch_size} cannot be shared by {process.world} processes",
            hint=f"--batch-size {math.ceil(config.batch_size / process.world) * process.world}",
        )


def claim(run: Path, process: Process, facts: Mapping[str, Any]) -> None:
    """Make the run's folder, or make sure that what it holds is this run."""
    path = run / "train.json"
    facts = json.loads(json.dumps(facts))  # as it will be read
    if path.exists():
        there = json.loads(path.read_text())
        if there != facts:
            config, old = facts["config"], there.get("config", {})
            changed = [
                f"{name} {old.get(name)!r}, now {config[name]!r}" for name in config if config[name] != old.get(name)
            ]
            changed += [f"{name} images" for name in ("data", "val") if there.get(name) != facts[name]]
            raise UsageError(
                "changed_run", f"{run} holds a run with other settings: {'; '.join(changed)}", hint="give another --out"
            )
    elif process.rank == 0:
        try:
            run.mkdir(parents=True, exist_ok=True)
            write_atomic(path, (json.dumps(facts, indent=1) + "\n").encode())
        except OSError as error:
            raise UsageError("output_failed", f"{run} could not be written: {error.strerror}") from error


class Log:
    """metrics.jsonl and skipped.jsonl of the run, written by the first process; remarks go to `watch`."""

    def __init__(self, run: Path, process: Process, watch: Callable[[Event], None]):
        self.run, self.first, self.watch = run, process.rank == 0, watch

    def say(self, text: str) -> None:
        if self.first:
            self.watch(dict(kind="remark", text=text))

    def write(self, row: Event) -> None:
        self.watch(row)
        self.keep(row)

    def keep(self, row: Event) -> None:
        self._append(METRICS, row)

    def skip(self, images: LabelledImages, batch: Batch, epoch: int) -> None:
        for index, error in batch.skipped:
            self._append("skipped.jsonl", dict(epoch=epoch, key=images.key(index), code=error.code), always=True)

    def _append(self, name: str, row: Event, always: bool = False) -> None:
        if self.first or always:
            with (self.run / name).open("a") as file:
                file.write(json.dumps(row) + "\n")

    def trim(self, step: int, evaluated: int) -> None:
        """Without the rows that a killed run wrote after its last checkpoint: they come again."""
        path = self.run / METRICS
        if self.first and path.exists():
            lines = [line for line in path.read_text().splitlines(True) if line.endswith("\n")]
            rows = [(line, json.loads(line)) for line in lines]
            kept = (
                line for line, row in rows if row["step"] <= step and row["epoch"] < evaluated + (row["kind"] == "step")
            )
            write_atomic(path, "".join(kept).encode())


def finish(
    run: Path, start: ImageModel, images: LabelledImages, config: TrainConfig, epoch: int, moment: int, command: str
) -> None:
    """Make the weights of a checkpoint the run's model: a folder to load, with a card and a report on `images`."""
    saved = checkpoint.read(run, moment)
    model, spec = new_model(dataclasses.replace(config, start="scratch"), images.classes)
    model.load_state_dict(saved.tensors.get("ema", saved.tensors["model"]))
    own = dict(label_names=images.classes, num_classes=len(images.classes))
    model.pretrained_cfg = {**start.pretrained_cfg, **spec.to_cfg(), **own}
    model.pretrained_cfg.pop("tag", None)  # of the weights it began with
    save_pretrained(model.eval(), run)
    rows = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    plan = make_plan(engine="eager", precision="float32")
    found = measure(Predictor(model, name=f"local-dir:{run}", plan=plan), images)
    assert found.metrics is not None
    write_report(
        run / "report",
        found.metrics,
        title=f"{run.name}: {config.model}, {len(epochs)} epochs",
        command=command,
        conditions=found.conditions,
        answers=found.answers,
        images=images,
        unread=found.unread,
        history=epochs,
        notes=(f"Weights of epoch {epoch + 1} of {len(epochs)}"
               f"{', averaged' if config.ema else ''}, on images that were not learned from.",),
    )  # fmt: skip
    top5 = "" if found.metrics.top5 is None else f", top-5 {100 * found.metrics.top5:.2f} %"
    figures = f"top-1 {100 * found.metrics.top1:.2f} %{top5} of {found.metrics.count:,} images of {images.origin}"
    hours = sum(row["seconds"] for row in epochs) / 3600
    card = model_card(model, json.loads((run / "config.json").read_text()))
    card += f"""
## Training

Measured by the run itself: {figures}; [report](report/report.md).

    {command}

{len(epochs)} epochs in {hours:.2f} hours on {found.conditions["hardware"]}, PyTorch {torch.__version__}; every setting
is in [train.json](train.json), every epoch in [metrics.jsonl](metrics.jsonl).
"""
    write_atomic(run / "README.md", card.encode())


def default_workers() -> int:
    """One process a core but the one that trains, at most 8."""
    return min(max((os.cpu_count() or 2) - 1, 0), 8)
