"""Training runs: from labeled images to a model folder for `tessella.load`, and for timm if it has the architecture.

All randomness is a function of the seed, the epoch, the image and the step. A run that is killed and resumed from its
last checkpoint therefore ends with the same weights as an uninterrupted one. Several processes (torchrun) share every
batch. The folder of a run holds train.json (the config and the fingerprints of the images), metrics.jsonl,
skipped.jsonl, checkpoints/, and at the end the model.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..allocator import FreedMemory
from ..checks import checked
from ..data.augment import TrainTransform
from ..data.datasets import LabelledImages
from ..data.loader import CropCache, EvalImages, Loader, Schedule, TrainImages
from ..data.unlabelled import TrainingImages
from ..errors import ImageError, TrainingError, UsageError, WeightsError
from ..plots.figures import warn_without_matplotlib
from ..signals import GracefulStop
from . import checkpoint
from .config import TrainConfig
from .distributed import DistributedContext
from .events import PROBE_EPOCH, EpochEvent, ProbeEvent, StepEvent, TrainingEvent, TrainingRemark
from .head import HeadSettings, fit_head
from .metrics_log import SKIPPED, MetricsLog
from .model import has_classifier_for
from .results import FinishedRun, write_results
from .run_folder import check_folder
from .schedule import learning_rate
from .setup import (
    DataSettings,
    PreparedModel,
    TrainingSetup,
    check_batch_size,
    check_distillation,
    check_workers,
    default_workers,
    mixture_of,
)
from .trainer import StepResult, Trainer
from .validation import BestEpoch, ProbeBaseline, Validation, validate

LOG_EVERY = 50  # steps between rows of metrics.jsonl, besides the row of each epoch
MAX_SKIPPED_STEPS = 10  # in a row, with on_bad_loss "skip"
DIVERGED_HINT = "try a lower --lr, or max_grad_norm 1 in the config, in a new folder"


@checked
def train(
    data: str | Path | DataSettings | tuple[LabelledImages, LabelledImages] | TrainingImages,
    out: str | Path,
    config: TrainConfig | None = None,
    *,
    device: str = "auto",
    workers: int | None = None,
    shard: bool = False,
    command: str = "",
    on_event: Callable[[TrainingEvent], None] = lambda event: None,
) -> Path:
    """Train a classifier on labeled images and return the folder of the run, `out`.

    A run that exists in the folder is resumed; its config and data must be the same. At the end the folder can be
    loaded with `tessella.load("local-dir:...")`. Of several processes, only the first returns after the results are
    written; the others return when all epochs are done.

    data: a path, `DataSettings`, or images that are open already: training and validation images, or `TrainingImages`,
    which may include unlabeled ones. config: None: the defaults of
    `TrainConfig`. device: "auto", "cpu", "cuda" or "cuda:1". workers: data loader processes; None: the number of cores
    minus one, at most 8. shard: shard the weights over the processes of torchrun (FSDP2). command: the command line
    that repeats the run, for its card and report. on_event: called with every event, see `tessella.training.events`.

    Raises UsageError (bad_argument, changed_run, exists, busy), OutputError (output_failed, damaged_run), TrainingError
    (diverged, interrupted), WeightsError and ImageError.
    """
    config = config or TrainConfig()
    check_workers(workers)
    context = DistributedContext.init(device)
    if shard and context.world_size == 1:
        raise UsageError("bad_argument", "--shard needs more than one process", hint="start the command with torchrun")
    folder = check_folder(out)
    if context.rank == 0:
        warn_without_matplotlib()
    if isinstance(data, str | Path):
        data = DataSettings(data=data)
    images = data.open_all() if isinstance(data, DataSettings) else TrainingImages(*data)
    for skipped in (images.train.skipped, *([images.unlabelled.skipped] if images.unlabelled else [])):
        for line in skipped.lines():
            on_event(TrainingRemark(text=line))
    check_distillation(config, images, shard)
    check_batch_size(config, images.pool, context)
    workers = default_workers() if workers is None else workers
    setup = TrainingSetup(folder, config, images, context, workers, on_event)
    with ExitStack() as stack:
        run = TrainingRun(setup, setup.prepare(stack))
        run.begin(shard)
        run.train_epochs()
        context.shutdown()  # before the results, or the others would wait until the time limit of the group
        if context.rank == 0:
            run.finish(command)
    return folder


class TrainingRun:
    """The state of a run between two steps, and what changes it."""

    def __init__(self, setup: TrainingSetup, prepared: PreparedModel):
        config, context = setup.config, setup.context
        self.setup, self.config = setup, config
        self.model, self.spec, self.classes, self.distillation = prepared
        self.log = MetricsLog(setup.folder, context, setup.on_event)
        self.pool = setup.images.pool
        self.schedule = Schedule(
            len(self.pool),
            config.batch_size,
            config.seed,
            config.repeats,
            context.rank,
            context.world_size,
            mixture_of(config, setup.images),
            config.teacher_epochs,
        )
        self.total_steps = config.epochs * self.schedule.steps
        pin = context.device.type == "cuda"
        rendered = self.spec
        if self.distillation is not None:  # at the larger size of teacher and student
            rendered = dataclasses.replace(
                self.spec, height=self.distillation.rendered[0], width=self.distillation.rendered[1]
            )
        transform = TrainTransform(rendered, config.augmentation)
        samples = TrainImages(self.pool, transform, config.erasing, config.seed, self._crop_cache())
        self.train_loader = Loader(samples, setup.workers, pin=pin)
        compares = self.distillation is not None and self.distillation.validates
        val_samples = EvalImages(setup.images.val, rendered if compares else self.spec)
        self.val_loader = Loader(val_samples, setup.workers, pin=pin, persistent=False)
        self.steps_done = self.epochs_done = 0
        self.best, self.totals = BestEpoch(), EpochTotals()
        self.probe: ProbeBaseline | None = None
        self.bad_steps_in_row, self.saved_at = 0, time.monotonic()

    def _crop_cache(self) -> CropCache | None:
        """Return where the teacher's outputs are kept, if crops repeat."""
        cache = self.distillation.cache if self.distillation is not None else None
        return None if cache is None else CropCache(cache, self.schedule.places, self.spec.height, self.spec.width)

    def begin(self, shard: bool) -> None:
        """Restore the newest checkpoint; without one, start, with a fitted classifier if the config asks for it."""
        setup, config, log = self.setup, self.config, self.log
        saved = checkpoint.read_newest(setup.folder, log.remark)
        self.model.to(setup.context.device)
        has_head = has_classifier_for(self.model, self.classes)
        validates_labels = self.distillation is None or not self.distillation.validates
        fits_head = config.probe and saved is None and not has_head and validates_labels
        started = time.monotonic()
        if fits_head:
            settings = HeadSettings(config.batch_size, setup.workers, config.seed, setup.on_event)
            fit_head(self.model, self.spec, setup.images.train, setup.context, settings)
        self._describe_distillation()
        self.trainer = Trainer(self.model, self.spec, config, setup.context, shard, self.distillation)
        if saved is not None:
            self._restore(saved)
        else:
            log.trim(-1, -1)
            self._find_center()
        if fits_head:
            validation = self._validate()
            self.probe = ProbeBaseline(validation.top1, validation.loss)
            self.best = self.best.better(validation, PROBE_EPOCH, 0)
            self._report(
                ProbeEvent(
                    val_top1=validation.top1,
                    val_loss=validation.loss,
                    val_images=validation.images,
                    val_errors=validation.errors,
                    seconds=round(time.monotonic() - started, 1),
                )
            )
            self.save()

    def _describe_distillation(self) -> None:
        """Report the teacher, and which images a run learns from."""
        if self.distillation is None:
            return
        teacher, unlabelled = self.distillation.teacher, self.setup.images.unlabelled
        for text in (teacher.describe(), *teacher.remarks):
            self.log.remark(text)
        if unlabelled is not None:
            size = self.schedule.steps * self.config.batch_size
            shares = self.schedule.mixture.shares[1:] if self.schedule.mixture else ()
            self.log.remark(
                f"{len(self.setup.images.train):,} labeled and {len(unlabelled):,} unlabeled images; an epoch is "
                f"{size:,} images, {100 * sum(shares):.0f} % of them unlabeled"
            )
        if self.distillation.cache is not None:
            cache, epochs = self.distillation.cache, min(self.config.teacher_epochs, self.config.epochs)
            size = epochs * self.schedule.places * cache.row_bytes
            self.log.remark(
                f"teacher_epochs is {epochs}: later epochs repeat their crops, with the teacher's outputs from "
                f"{cache.path}, which is deleted at the end, {size / 1e9:.2f} GB"
            )

    def _find_center(self) -> None:
        """Measure the mean of the teacher's embedding on the first images of an epoch, if it is distilled."""
        if self.distillation is None or not self.config.distills_embedding:
            return
        count = min(self.config.distill_center_images, len(self.pool))
        context = self.setup.context
        order = dataclasses.replace(self.schedule, repeats=1, batch_size=count, rank=0, world_size=1).epoch(0)[0]
        mine = order[context.rank :: context.world_size]
        size = max(self.config.batch_size // context.world_size, 1)
        batches = [mine[i : i + size] for i in range(0, len(mine), size)]
        self.log.remark(self.distillation.find_center(self.train_loader.run(batches), context))

    def _restore(self, saved: checkpoint.TrainingCheckpoint) -> None:
        self.steps_done, self.epochs_done = self.trainer.restore(saved), saved.state["evaluated"]
        self.best, self.totals = BestEpoch.from_state(saved.state["best"]), EpochTotals(**saved.state["sums"])
        self._check_best(saved)
        probe = saved.state.get("probed")
        self.probe = None if probe is None else ProbeBaseline(**probe)
        if self.steps_done < self.total_steps:
            self.log.remark(f"resuming after step {self.steps_done:,} of {self.total_steps:,}")
        else:
            self.log.remark("all epochs are done")
        self.log.trim(self.steps_done, self.epochs_done)

    def _check_best(self, saved: checkpoint.TrainingCheckpoint) -> None:
        """Choose other weights than those of the best epoch so far if its checkpoint cannot be read.

        It may have been deleted when a newer epoch was better, whose checkpoint is damaged.
        """
        best, folder = self.best, self.setup.folder
        if self.config.select == "last" or best == BestEpoch() or best.checkpoint_id == saved.checkpoint_id:
            return
        try:
            checkpoint.read(folder, best.checkpoint_id)
            return
        except WeightsError as error:
            missing = not checkpoint.checkpoint_folder(folder, best.checkpoint_id).exists()
            problem = "the checkpoint of the best epoch so far is missing" if missing else error.message
        if self.epochs_done < self.config.epochs:
            self.log.remark(f"{problem}, so the best of the remaining epochs will be kept")
            self.best = BestEpoch()
            return
        self.log.remark(f"{problem}, so the weights of the newest checkpoint are kept, those of the last epoch")
        epoch = self.epochs_done - 1
        row = next((row for row in self.log.rows() if row["kind"] == "epoch" and row["epoch"] == epoch), {})
        self.best = BestEpoch(row.get("val_top1", 0.0), row.get("val_loss", 0.0), epoch, saved.checkpoint_id)

    def save(self) -> None:
        """Write a checkpoint; every process must call it."""
        tensors = self.trainer.tensors()
        if self.setup.context.rank == 0:
            state = dict(
                step=self.steps_done,
                evaluated=self.epochs_done,
                best=self.best.as_state(),
                sums=dataclasses.asdict(self.totals),
                probed=None if self.probe is None else dataclasses.asdict(self.probe),
            )
            checkpoint_id = self.steps_done + self.epochs_done
            checkpoint.save(self.setup.folder, checkpoint_id, tensors, state | self.trainer.state())
            keep, best = self.config.keep_checkpoints, self.best.checkpoint_id
            checkpoint.prune(self.setup.folder, checkpoint_id, keep, best)
        self.saved_at = time.monotonic()

    def train_epochs(self) -> None:
        """Train until the last epoch is validated and saved; raises TrainingError."""
        with GracefulStop() as stop, FreedMemory() as freed_memory:
            for epoch in range(self.epochs_done, self.config.epochs):
                started = time.monotonic()
                self._train_epoch(epoch, stop, freed_memory)
                self._require_images(epoch)
                validation = self._validate()
                self.best = self.best.better(validation, epoch, self.steps_done + epoch + 1)
                self._report(
                    EpochEvent(
                        epoch=epoch,
                        step=self.steps_done,
                        lr=learning_rate(self.config, self.steps_done - 1, self.total_steps),
                        loss=self.totals.loss / max(self.totals.images, 1),
                        images=self.totals.images,
                        skipped=self.totals.skipped,
                        bad_steps=self.totals.bad,
                        val_top1=validation.top1,
                        val_loss=validation.loss,
                        val_images=validation.images,
                        val_errors=validation.errors,
                        seconds=round(time.monotonic() - started, 1),
                        measure="top-1" if self.distillation is None else self.distillation.measure,
                    )
                )
                self.epochs_done, self.totals = epoch + 1, EpochTotals()
                self.save()

    def _train_epoch(self, epoch: int, stop: GracefulStop, freed_memory: FreedMemory) -> None:
        """Do the remaining steps of an epoch; raises TrainingError."""
        config, log = self.config, self.log
        self.trainer.train()
        started, first_step = time.monotonic(), self.steps_done
        for batch in self.train_loader.run(self.schedule.epoch(epoch)[first_step - epoch * self.schedule.steps :]):
            lr = learning_rate(config, self.steps_done, self.total_steps)
            overdue = time.monotonic() - self.saved_at > 60 * config.checkpoint_minutes
            with _memory_errors(config):
                result = self.trainer.step(batch, self.steps_done, lr, stop.requested, overdue)
            freed_memory.adjust()
            self.steps_done += 1
            log.write_skipped(self.pool, batch, epoch, self.steps_done)
            self.totals.add(result, config.batch_size)
            self._check_loss(result)
            rate = (self.steps_done - first_step) * config.batch_size / (time.monotonic() - started)
            event = StepEvent(
                step=self.steps_done,
                steps=self.total_steps,
                epoch=epoch,
                loss=result.loss,
                lr=lr,
                images_per_second=rate,
            )
            self.setup.on_event(event)
            if self.steps_done % LOG_EVERY == 0 and result.applied:
                log.write(event)
            if result.stop:
                self.save()
                raise TrainingError(
                    "interrupted",
                    f"stopped by {stop.name or 'another process'} after step {self.steps_done:,} of "
                    f"{self.total_steps:,}; the state is saved in {self.setup.folder}",
                    hint="run the same command again to resume",
                )
            if result.overdue and self.steps_done % self.schedule.steps:  # the end of an epoch is saved later
                self.save()

    def _require_images(self, epoch: int) -> None:
        """Raise ImageError `unreadable` if no image of an epoch could be read, so that nothing was learned."""
        if not self.totals.images and not self.totals.bad:
            raise ImageError(
                "unreadable",
                f"epoch {epoch}: none of the training images can be read; their errors are in "
                f"{self.setup.folder / SKIPPED}",
                hint="replace the images, and give another --out",
            )

    def _check_loss(self, result: StepResult) -> None:
        """Report a step that was not applied; raises TrainingError `diverged` after too many in a row."""
        if result.applied:
            self.bad_steps_in_row = 0
            return
        self.bad_steps_in_row += 1
        self.log.remark(f"step {self.steps_done} skipped: loss {result.loss}, gradient norm {result.grad_norm}")
        if self.bad_steps_in_row > (MAX_SKIPPED_STEPS if self.config.on_bad_loss == "skip" else 0):
            raise TrainingError(
                "diverged",
                f"step {self.steps_done}: the loss is {result.loss}, the gradient norm {result.grad_norm}; "
                f"the checkpoints in {self.setup.folder} were saved earlier",
                hint=DIVERGED_HINT,
            )

    def _validate(self) -> Validation:
        """Validate the model; raises TrainingError `diverged` if the loss is not finite."""
        validation = validate(self.trainer, self.val_loader, len(self.setup.images.val))
        if not math.isfinite(validation.loss):
            raise TrainingError(
                "diverged",
                f"after step {self.steps_done}, the loss on the validation images is {validation.loss}; "
                f"the checkpoints in {self.setup.folder} were saved earlier",
                hint=DIVERGED_HINT,
            )
        return validation

    def _report(self, event: EpochEvent | ProbeEvent) -> None:
        self.setup.on_event(event)
        self.log.write(event)

    def finish(self, command: str) -> None:
        """Write the model, its card and the report; in the first process only, without the others."""
        best = self.best
        selects_last = self.config.select == "last"
        if self.probe is not None:
            self.log.remark(self.probe.comparison(best, selects_last))
        calibration = write_results(
            FinishedRun(
                folder=self.setup.folder,
                config=self.config,
                images=self.setup.images,
                classes=self.classes,
                distillation=self.distillation,
                initial=self.model,
                checkpoint_id=self.steps_done + self.epochs_done if selects_last else best.checkpoint_id,
                epoch=self.epochs_done - 1 if selects_last else best.epoch,
                epochs=[row for row in self.log.rows() if row["kind"] == "epoch"],
                probe_top1=None if self.probe is None else self.probe.top1,
                command=command,
            )
        )
        self.log.remark(calibration)
        if self.distillation is not None and self.distillation.cache is not None:
            self.distillation.cache.delete()


@dataclass
class EpochTotals:
    """Sums over the steps of an epoch so far.

    loss: summed over images; images: images trained on; skipped: images that could not be read; bad: steps that were
    not applied.
    """

    loss: float = 0.0
    images: int = 0
    skipped: int = 0
    bad: int = 0

    def add(self, result: StepResult, batch_size: int) -> None:
        """Add a step."""
        self.skipped += batch_size - result.images
        if not result.applied:
            self.bad += 1
            return
        self.loss += result.loss * result.images
        self.images += result.images


@contextmanager
def _memory_errors(config: TrainConfig) -> Iterator[None]:
    """Turn a lack of memory and a failed compilation into UsageError `bad_argument`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
            raise UsageError(
                "bad_argument",
                f"a batch of {config.batch_size} images in {config.grad_accum_steps} gradient accumulation steps does "
                "not fit in memory",
                hint="give a larger --grad-accum-steps, or a smaller --batch-size or --img-size, and another --out",
            ) from error
        if config.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise UsageError(
                "bad_argument", f"torch.compile failed: {text.splitlines()[0][:300]}", hint="leave out --compile"
            ) from error
        raise
