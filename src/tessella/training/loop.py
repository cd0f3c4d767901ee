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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..checks import checked
from ..data.augment import TrainTransform
from ..data.datasets import LabelledImages, open_split
from ..data.loader import Batch, EvalImages, Loader, Schedule, TrainImages, eval_batches
from ..data.transforms import InputSpec
from ..engine import make_plan
from ..errors import ImageError, OutputError, TrainingError, UsageError
from ..evaluation.evaluator import Evaluation, measure
from ..evaluation.leakage import check_unchanged, read_seen, write_seen
from ..evaluation.report import percent, write_report
from ..models.base import ImageModel
from ..plots.figures import warn_without_matplotlib
from ..predictor import Predictor
from ..signals import StopRequest
from ..storage import folder_lock, read_regular, write_atomic
from ..text import escape
from ..weights.save import model_card, save_pretrained
from . import checkpoint
from .config import TrainConfig, differences, learning_rate
from .head import fit_head
from .trainer import Process, Step, Student, Teacher, new_model, new_teacher

METRICS = "metrics.jsonl"
LOG_EVERY = 50  # steps to a row of metrics.jsonl, besides one an epoch
PATIENCE = 10  # steps in a row without a finite loss that "skip" goes past
MOST_WORKERS = 256
SETTINGS, LOCK = "train.json", ".train.lock"
PROBE = -1  # the epoch of the linear probe, before the first one
Event = dict[str, Any]


@checked
def train(
    data: str | Path | tuple[LabelledImages, LabelledImages],
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
    """Train config.model on the images of `data` and write the run to `out`, which is returned.

    A run that exists there is resumed if its config and data are the same. data: a path, or training and validation
    images that are open. val: images to evaluate on after each epoch; None takes the split beside the training images,
    or `val_fraction` of them. workers: processes that read and augment images. shard: shard the weights over the
    processes (FSDP2). command: the command line that repeats the run, for its card and report. watch: is called with a
    dict for each step, epoch and remark.
    Raises UsageError (bad_argument, changed_run, busy, output_failed), TrainingError (diverged, interrupted),
    WeightsError, ImageError.
    """
    config = config or TrainConfig()
    check_workers(workers)
    process = Process.join(device)
    if shard and process.world == 1:
        raise UsageError("bad_argument", "--shard needs several processes", hint="start it with torchrun")
    run = check_folder(out)
    if process.rank == 0:
        warn_without_matplotlib()
    learning, held_out = data if isinstance(data, tuple) else open_split(data, val=val, val_fraction=val_fraction)
    for line in learning.skipped.lines():
        watch(dict(kind="remark", text=line))
    check_data(config, learning, process)
    facts = dict(config=config.as_dict(), data=learning.fingerprint, val=held_out.fingerprint)
    with ExitStack() as stack:
        lock = folder_lock(run, LOCK, hint="wait for that training to end, or give another --out")
        exists = (run / SETTINGS).exists()
        if exists:  # refuse before the work
            stack.enter_context(lock if process.rank == 0 else nullcontext())
            check_same(run, config, facts)
        torch.manual_seed(config.seed)
        model, spec = new_model(config, learning.classes)
        teacher = new_teacher(config, spec, len(learning.classes), process.device) if config.teacher else None
        if not exists:
            stack.enter_context(lock if process.rank == 0 else nullcontext())
        if process.rank == 0:
            claim(run, facts)
            if exists:
                check_unchanged(run, learning, held_out)
            if read_seen(run) is None:
                write_seen(run, learning, held_out, config.model if config.start == "pretrained" else "")
        workers = default_workers() if workers is None else workers
        trainer = Trainer(run, config, model, spec, learning, held_out, process, workers, watch)
        trainer.begin(shard)
        trainer.epochs(teacher)
        if process.rank == 0:
            finish(trainer, model, command)
        process.leave()
    return run


class Trainer:
    """The state of a run between two steps, and what changes it."""

    def __init__(
        self,
        run: Path,
        config: TrainConfig,
        model: ImageModel,
        spec: InputSpec,
        learning: LabelledImages,
        held_out: LabelledImages,
        process: Process,
        workers: int,
        watch: Callable[[Event], None],
    ):
        self.run, self.config, self.model, self.spec = run, config, model, spec
        self.learning, self.held_out, self.process, self.workers = learning, held_out, process, workers
        self.watch, self.log = watch, Log(run, process, watch)
        self.schedule = Schedule(
            len(learning), config.batch_size, config.seed, config.repeats, process.rank, process.world
        )
        self.total = config.epochs * self.schedule.steps
        pin = process.device.type == "cuda"
        transform = TrainTransform(spec, config.augmentation)
        self.loader = Loader(TrainImages(learning, transform, config.erasing, config.seed), workers, pin=pin)
        self.checker = Loader(EvalImages(held_out, spec), workers, pin=pin, persistent=False)
        self.done, self.evaluated = 0, 0  # steps, epochs
        self.best, self.sums = Best(), Sums()
        self.probed: dict[str, Any] | None = None  # what the linear probe reached on the held-out images
        self.bad_in_row, self.saved_at = 0, time.monotonic()

    def begin(self, shard: bool) -> None:
        """Take over the newest checkpoint; without one, start, with a fitted classifier if the config asks for it."""
        config, log = self.config, self.log
        saved = checkpoint.read_newest(self.run, log.say)
        self.model.to(self.process.device)
        fitted = config.probe and saved is None and not knows(self.model, self.learning.classes)
        started = time.monotonic()
        if fitted:
            fit_head(self.model, self.spec, self.learning, self.process,
                     workers=self.workers, batch=config.batch_size, seed=config.seed)  # fmt: skip
        self.student = Student(self.model, self.spec, config, self.process, shard)
        if saved is not None:
            self.done, self.evaluated = self.student.restore(saved), saved.state["evaluated"]
            self.best, self.sums = Best(**saved.state["best"]), Sums(**saved.state["sums"])
            self.probed = saved.state.get("probed")
            if self.done < self.total:
                log.say(f"resuming after step {self.done:,} of {self.total:,}")
            else:
                log.say("every epoch is done")
            log.trim(self.done, self.evaluated)
        else:
            log.trim(-1, -1)
        if fitted:
            found = evaluate(self.student, self.checker, len(self.held_out))
            self.probed = dict(top1=found["val_top1"], loss=found["val_loss"])
            self.best = self.best.better(found["val_top1"], found["val_loss"], PROBE, 0)
            seconds = round(time.monotonic() - started, 1)
            log.write(dict(kind="probe", epoch=PROBE, step=0, **found, seconds=seconds))
            self.save()

    def save(self) -> None:
        tensors = self.student.tensors()  # of all processes, where the weights are divided
        if self.process.rank == 0:
            facts = dict(step=self.done, evaluated=self.evaluated, best=dataclasses.asdict(self.best),
                         sums=dataclasses.asdict(self.sums), probed=self.probed)  # fmt: skip
            checkpoint.save(self.run, self.done + self.evaluated, tensors, facts | self.student.state())
            checkpoint.prune(self.run, self.config.keep, self.best.moment)
        self.saved_at = time.monotonic()

    def epochs(self, teacher: Teacher | None) -> None:
        """Train until the last epoch is evaluated and saved."""
        with StopRequest() as stop:
            for epoch in range(self.evaluated, self.config.epochs):
                started = time.monotonic()
                self.steps(epoch, teacher, stop)
                found = evaluate(self.student, self.checker, len(self.held_out))
                moment = self.done + epoch + 1
                self.best = self.best.better(found["val_top1"], found["val_loss"], epoch, moment)
                rate = learning_rate(self.config, self.done - 1, self.total)
                self.log.write(dict(kind="epoch", epoch=epoch, step=self.done, lr=rate, **self.sums.row(), **found,
                                    seconds=round(time.monotonic() - started, 1)))  # fmt: skip
                self.evaluated, self.sums = epoch + 1, Sums()
                self.save()

    def steps(self, epoch: int, teacher: Teacher | None, stop: StopRequest) -> None:
        """The steps of an epoch that are left; raises TrainingError."""
        config, log = self.config, self.log
        self.student.train()
        started, before = time.monotonic(), self.done
        for batch in self.loader.run(self.schedule.epoch(epoch)[self.done - epoch * self.schedule.steps :]):
            rate = learning_rate(config, self.done, self.total)
            overdue = time.monotonic() - self.saved_at > 60 * config.checkpoint_minutes
            with memory_errors(config):
                step = self.student.step(batch, self.done, rate, teacher, stop.requested, overdue)
            self.done += 1
            log.skip(self.learning, batch, epoch)
            self.sums.add(step, config.batch_size)
            self.check(step)
            speed = (self.done - before) * config.batch_size / (time.monotonic() - started)
            event = dict(kind="step", step=self.done, steps=self.total, epoch=epoch, loss=step.loss, lr=rate)
            self.watch(event | dict(images_per_second=speed))
            if self.done % LOG_EVERY == 0 and step.taken:
                log.keep(event)
            if step.stop:
                self.save()
                raise TrainingError(
                    "interrupted",
                    f"stopped by {stop.signal_name or 'another process'} after step {self.done:,} of {self.total:,}; "
                    f"{self.run} is saved",
                    hint="run the same command again to resume",
                )
            if step.overdue and self.done % self.schedule.steps:  # the end of an epoch is saved after its evaluation
                self.save()

    def check(self, step: Step) -> None:
        """Count steps that were not taken; raises TrainingError `diverged` after too many in a row."""
        self.bad_in_row = 0 if step.taken else self.bad_in_row + 1
        if not step.taken:
            self.log.say(f"step {self.done} skipped: loss {step.loss}, gradient norm {step.norm}")
        if self.bad_in_row > (PATIENCE if self.config.on_bad_loss == "skip" else 0):
            raise TrainingError(
                "diverged",
                f"step {self.done}: the loss is {step.loss}, the gradient norm {step.norm}; "
                f"the checkpoints in {self.run} are from before it",
                hint="try a lower --lr, or clip_norm 1 in the config, in a new folder",
            )

    def verdict(self) -> str:
        """Say whether fine-tuning beat the linear probe, and which weights are kept."""
        assert self.probed is not None
        kept = f"the weights of epoch {self.best.epoch} are kept"
        if self.best.epoch == PROBE:
            kept = "the weights of the probe are kept"
        if self.config.select == "last":
            kept = "the weights of the last epoch are kept"
        probed, best = 100 * self.probed["top1"], 100 * self.best.top1
        if self.best.epoch == PROBE:
            return f"fine-tuning did not beat the linear probe ({probed:.2f} %): {kept}"
        if best == probed:
            return f"fine-tuning equals the linear probe in accuracy and has a lower loss: {kept}"
        return f"fine-tuning beat the linear probe ({best:.2f} % against {probed:.2f} %): {kept}"


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
    """The best epoch so far, by top-1 on the held-out images, then by their loss; epoch -1 is the linear probe."""

    top1: float = -1.0
    loss: float = 0.0
    epoch: int = PROBE
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


@contextmanager
def memory_errors(config: TrainConfig) -> Iterator[None]:
    """Turn a batch that does not fit in memory, and a failed compilation, into UsageError `bad_argument`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
            raise UsageError(
                "bad_argument",
                f"a batch of {config.batch_size} with {config.accumulate} accumulation steps does not fit in memory",
                hint="give a larger --accumulate, or a smaller --batch-size or --img-size, and another --out",
            ) from error
        if config.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise UsageError(
                "bad_argument", f"torch.compile failed: {text.splitlines()[0][:300]}", hint="leave out --compile"
            ) from error
        raise


def check_workers(workers: int | None) -> None:
    if workers is not None and (type(workers) is not int or not 0 <= workers <= MOST_WORKERS):
        raise UsageError("bad_argument", f"workers is {workers!r}, expected 0 to {MOST_WORKERS}")


def check_folder(out: str | Path) -> Path:
    """The folder of the run; a place where no folder can be made is refused before the work."""
    if not os.fspath(out):
        raise UsageError("bad_argument", "the folder of the run has no name", hint="--out RUN")
    run = Path(out)
    try:
        (run / SETTINGS).lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            "output_failed", f"{str(run)[:200]!r} cannot be used: {reason}", hint="give another --out"
        ) from None
    there = run
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise OutputError("output_failed", f"{run} cannot be a folder: {there} is not one", hint="give another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError("output_failed", f"{there} is not writable", hint="give another --out")
    return run


def check_same(run: Path, config: TrainConfig, facts: Mapping[str, Any]) -> None:
    """Raise UsageError `changed_run` unless the run in the folder has these settings and data.

    More epochs are allowed where the learning rate is constant, so that the epochs that are done stay as they are.
    Raises OutputError `damaged_run` where train.json cannot be read.
    """
    old, data = read_settings(run)
    changed = differences(old, config)
    images = [name for name in ("data", "val") if data[name] != facts[name]]
    if not images and set(changed) == {"epochs"}:
        if config.schedule == "constant" and config.epochs > old.epochs:
            return
        raise UsageError(
            "changed_run",
            f"{run} holds a run of {old.epochs:,} epochs, not {config.epochs:,}: its learning rate follows the "
            f"{config.schedule} schedule of that many epochs",
            hint=f"to train its model further: -m local-dir:{run}, --epochs and another --out",
        )
    if changed or images:
        told = [f"{name} was {before}, now {now}" for name, (before, now) in changed.items()]
        told += [f"the {'training' if name == 'data' else 'validation'} images changed" for name in images]
        more = f"; and {len(told) - 5} more" if len(told) > 6 else ""
        raise UsageError(
            "changed_run",
            f"{run} holds a run with other settings or data: {'; '.join(told[:5] if more else told)}{more}",
            hint=f"give another --out, or resume the run as it was: --config {run / SETTINGS}",
        )


def read_settings(run: Path) -> tuple[TrainConfig, dict[str, str]]:
    """The config and the data's fingerprints in train.json of a run; raises OutputError `damaged_run`."""
    path = run / SETTINGS
    try:
        facts = json.loads(read_regular(path))
        config = TrainConfig.from_dict(facts["config"])
        data = {name: facts[name] for name in ("data", "val")}
    except UsageError as error:
        reason = error.message
    except OSError as error:
        reason = str(error.strerror)
    except (ValueError, RecursionError):
        reason = "it is not JSON"
    except (KeyError, TypeError):
        reason = "config, data or val is missing"
    else:
        return config, data
    raise OutputError("damaged_run", f"{path} is damaged: {reason}", hint="give another --out")


def claim(run: Path, facts: Mapping[str, Any]) -> None:
    """Write the settings of the run, which is new, or has the same ones."""
    data = (json.dumps(facts, indent=1) + "\n").encode()
    try:
        if not (run / SETTINGS).exists() or json.loads(read_regular(run / SETTINGS)) != json.loads(data):
            write_atomic(run / SETTINGS, data)
    except OSError as error:
        raise OutputError("output_failed", f"{run} could not be written: {error.strerror}") from error


def knows(model: ImageModel, classes: Sequence[str]) -> bool:
    """Whether the model's own classifier is for these classes: then it is trained further, and no other is fitted."""
    return tuple(model.pretrained_cfg.get("label_names") or ()) == tuple(classes)


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
            try:
                with (self.run / name).open("a") as file:
                    file.write(json.dumps(row) + "\n")
            except OSError as error:
                raise OutputError(
                    "output_failed",
                    f"{self.run / name} could not be written: {error.strerror}",
                    hint="free some space and run the same command again: it resumes from the last checkpoint",
                ) from error

    def trim(self, step: int, evaluated: int) -> None:
        """Drop the rows that a killed run wrote after its last checkpoint; they will be written again."""
        if not self.first:
            return
        kept = [
            row for row in self.rows() if row["step"] <= step and row["epoch"] < evaluated + (row["kind"] == "step")
        ]
        path = self.run / METRICS
        if path.exists():
            try:
                write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
            except OSError as error:
                raise OutputError("output_failed", f"{path} could not be written: {error.strerror}") from error

    def rows(self) -> list[Event]:
        """Read the rows of metrics.jsonl; damaged lines are counted and skipped."""
        try:
            lines = read_regular(self.run / METRICS).split(b"\n")
        except OSError:
            return []
        rows = [row for row in map(_row, lines) if row]
        damaged = sum(bool(line) for line in lines[:-1]) - sum(bool(_row(line)) for line in lines[:-1])
        if damaged:
            self.say(f"{damaged} damaged lines of {self.run / METRICS} were skipped")
        return rows


def _row(line: bytes) -> Event | None:
    """A line of metrics.jsonl; None for one that is damaged or cut off."""
    try:
        row = json.loads(line)
        known = type(row["step"]) is int and type(row["epoch"]) is int and row["kind"] in ("step", "epoch", "probe")
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return row if known else None


def finish(trainer: Trainer, start: ImageModel, command: str) -> None:
    """Make the weights of a checkpoint the run's model: a folder to load, with a card and a report."""
    run, config, images, best = trainer.run, trainer.config, trainer.held_out, trainer.best
    last = config.select == "last"
    epoch = trainer.evaluated - 1 if last else best.epoch
    saved = checkpoint.read(run, trainer.done + trainer.evaluated if last else best.moment)
    model, spec = new_model(dataclasses.replace(config, start="scratch"), images.classes)
    model.load_state_dict(saved.tensors.get("ema", saved.tensors["model"]))
    own = dict(label_names=images.classes, num_classes=len(images.classes))
    model.pretrained_cfg = {**start.pretrained_cfg, **spec.to_cfg(), **own}
    for name in ("tag", "label_descriptions"):  # of the weights that training started from
        model.pretrained_cfg.pop(name, None)
    save_pretrained(model.eval(), run)
    if trainer.probed is not None:
        trainer.log.say(trainer.verdict())
    epochs = [row for row in trainer.log.rows() if row["kind"] == "epoch"]
    plan = make_plan(engine="eager", precision="float32")
    found = measure(Predictor(model, name=f"local-dir:{run}", plan=plan), images)
    assert found.metrics is not None
    kind = "the linear probe" if epoch == PROBE else f"epoch {epoch + 1} of {len(epochs)}"
    averaged = ", averaged" if config.ema and epoch != PROBE else ""
    notes = [f"Weights of {kind}{averaged}, on images that were not trained on."]
    if trainer.probed is not None:
        notes.append(f"Linear probe before fine-tuning: {percent(trainer.probed['top1'])}.")
    hours = sum(row["seconds"] for row in epochs) / 3600
    card = model_card(model, json.loads((run / "config.json").read_text())) + training_card(
        found, images, command, f"{len(epochs)} epochs in {hours:.2f} hours"
    )
    try:
        write_atomic(run / "README.md", card.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OutputError("output_failed", f"{run / 'README.md'} could not be written: {error.strerror}") from error
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
        notes=notes,
    )


def training_card(found: Evaluation, images: LabelledImages, command: str, effort: str) -> str:
    """What the model card says about the run."""
    assert found.metrics is not None
    top5 = "" if found.metrics.top5 is None else f", top-5 {percent(found.metrics.top5)}"
    figures = f"top-1 {percent(found.metrics.top1)}{top5} on {found.metrics.count:,} images of {escape(images.origin)}"
    return f"""
## Training

Measured by the run itself: {figures}; [report](report/report.md).

    {escape(command)}

{effort} on {found.conditions["hardware"]}, PyTorch {torch.__version__}; every setting is in [train.json](train.json),
every epoch in [metrics.jsonl](metrics.jsonl).
"""


def default_workers() -> int:
    """One process per core besides the one that trains, at most 8."""
    return min(max((os.cpu_count() or 2) - 1, 0), 8)
