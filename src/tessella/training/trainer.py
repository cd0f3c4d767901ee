"""The state that a training step changes: a model with its optimizer and averaged weights."""

from __future__ import annotations

import contextlib
import copy
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..data.loader import Batch
from ..data.mix import labelled_binary_loss, labelled_targets, mix, soft_target_loss
from ..data.spec import InputSpec
from ..data.transforms import normalise
from ..errors import WeightsError
from ..models.base import ImageModel
from .checkpoint import TrainingCheckpoint
from .config import TrainConfig
from .depthwise import use_fast_gradients
from .distillation import Distillation, Student, StudentOutputs
from .distributed import DistributedContext, full_tensor, shard_like
from .model import ParameterGroup, parameter_groups
from .muon import Muon
from .teacher_base import TeacherOutputs

_PROJECTION = "projection"  # part of a checkpoint, and prefix of its parameters' names
_MIX, _STEP = 3, 4  # separate the random numbers by their use, as in data/loader.py
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class StepResult(NamedTuple):
    """The outcome of a step, over all processes.

    loss: mean over the images; grad_norm: norm of the gradient; images: images that could be read; applied: False if
    loss or gradient is not finite; stop, overdue: whether any process was asked to stop, or is due for a checkpoint.
    """

    loss: float
    grad_norm: float
    images: int
    applied: bool
    stop: bool
    overdue: bool


class Trainer:
    """A model in training, with its optimizer and averaged weights; one of these in every process.

    shard: shard the weights over the processes (FSDP2). distillation: the teacher, if there is one.
    """

    def __init__(
        self,
        model: ImageModel,
        spec: InputSpec,
        config: TrainConfig,
        context: DistributedContext,
        shard: bool,
        distillation: Distillation | None = None,
    ):
        self.model, self.spec, self.config, self.context = model, spec, config, context
        self.distillation = distillation
        model.set_grad_checkpointing(config.grad_checkpointing)
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from torch's overloads
        if context.device.type == "cpu" and config.precision == "bfloat16" and not config.compile:
            use_fast_gradients(model)
        if context.world_size > 1 and context.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # there is none for the CPU
        self.ema = copy.deepcopy(model).requires_grad_(False) if config.ema_decay else None
        if shard:
            _shard(model)
            if self.ema is not None:
                _shard(self.ema)
        self.projection = self._new_projection()
        self.ema_projection = (
            copy.deepcopy(self.projection).requires_grad_(False) if self.projection and config.ema_decay else None
        )
        groups = [dict(group) for group in self._parameter_groups()]
        if config.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, config.lr, momentum=config.momentum)
        else:
            cls = Muon if config.optimizer == "muon" else torch.optim.AdamW
            self.optimizer = cls(groups, config.lr, eps=config.eps, fused=not shard)
        self.parameters: list[nn.Parameter] = [
            parameter for group in self.optimizer.param_groups for parameter in group["params"]
        ]
        names = dict(model.named_parameters())
        self.statistics = [value for name, value in model.state_dict().items() if name not in names]
        self.scaler = torch.amp.GradScaler(context.device.type, enabled=config.precision == "float16")
        self.forward: nn.Module = model if self.projection is None else self._student(model, self.projection)
        if config.compile:
            self.forward.compile()
        if context.world_size > 1 and not shard:
            device_ids = [context.device] if context.device.type == "cuda" else None
            self.forward = nn.parallel.DistributedDataParallel(
                self.forward, device_ids=device_ids, find_unused_parameters=False
            )

    def _new_projection(self) -> nn.Linear | None:
        """Return the projection of the student's embedding to the width of the teacher's, if that is distilled."""
        if not self.config.distills_embedding:
            return None
        assert self.distillation is not None
        width = self.distillation.teacher.width
        return nn.Linear(self.model.head_hidden_size, width, device=self.context.device)

    def _student(self, model: ImageModel, projection: nn.Module) -> Student:
        return Student(model, projection, self._trains_head)

    @property
    def _trains_head(self) -> bool:
        """Whether anything depends on the logits of the model."""
        return self.config.uses_labels or self.config.distills_logits

    def _parameter_groups(self) -> list[ParameterGroup]:
        """Return the groups of the model's parameters, and of the projection's."""
        if not self._trains_head:
            self.model.get_classifier().requires_grad_(False)  # it would never have a gradient, for which DDP waits
        groups, config = parameter_groups(self.model, self.config), self.config
        if self.projection is not None:
            for name, parameter in self.projection.named_parameters():
                decay = config.weight_decay if name == "weight" else 0.0
                groups.append(
                    ParameterGroup(params=[parameter], weight_decay=decay, scale=1.0, lr=config.lr, orthogonalize=False)
                )
        return groups

    def train(self) -> None:
        """Put the model into training mode, except batch norms that keep their statistics."""
        self.model.train(self.config.trainable == "all")
        if self.config.freeze_batch_norm_stats:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    @property
    def eval_model(self) -> nn.Module:
        """The model that is validated and kept: the averaged weights, if there are any."""
        return self.model if self.ema is None else self.ema

    def step(self, batch: Batch, step: int, lr: float, stop: bool, overdue: bool) -> StepResult:
        """Train on one batch with learning rate `lr`; the weights change only if loss and gradient are finite.

        step: number of steps before this one. stop, overdue: requests of this process, which the result has for all.
        """
        # dropout and stochastic depth are a function of the step, too
        rng = np.random.default_rng([self.config.seed, _STEP, step, self.context.rank])
        torch.manual_seed(int(rng.integers(2**62)))
        images, stops, saves = self.context.all_reduce_sum(len(batch.labels), stop, overdue)
        if not images:  # no process could read any
            return StepResult(0.0, 0.0, 0, True, stops > 0, saves > 0)
        statistics = [value.clone() for value in self.statistics]
        loss_sum = self._backward(batch, step, images)
        self.scaler.unscale_(self.optimizer)
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        grad_norm = full_tensor(torch.nn.utils.get_total_norm(grads))
        loss = self.context.all_reduce_sum(loss_sum.item())[0] / images
        applied = math.isfinite(loss) and math.isfinite(grad_norm.item())
        if applied:
            if self.config.max_grad_norm:
                torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.max_grad_norm, grad_norm)
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group["scale"]
            self.scaler.step(self.optimizer)
            self._update_average(step)
        else:  # the forward pass has changed the batch statistics already
            for value, old in zip(self.statistics, statistics, strict=True):
                value.copy_(old)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        # with float16, a loss scale that is too high is part of the search for the right one
        counts_as_applied = applied or (self.scaler.is_enabled() and math.isfinite(loss))
        return StepResult(loss, grad_norm.item(), int(images), counts_as_applied, stops > 0, saves > 0)

    def _backward(self, batch: Batch, step: int, images: float) -> Tensor:
        """Accumulate the gradients of a batch, of which all processes have `images`; return the sum of its losses."""
        config = self.config
        x, labels = self._inputs(batch, step)
        count = min(config.grad_accum_steps, config.batch_size // self.context.world_size)
        parts = list(zip(x.chunk(count), labels.chunk(count), self._known_targets(batch, count), strict=False))
        filled = len(parts) if len(batch.labels) else 0
        if self.context.world_size > 1:
            # a process that could not read some images has fewer parts, but sharded weights and batch norms that are
            # synchronized wait in each forward pass for all processes
            parts += parts[:1] * (count - len(parts))
        loss_sum = torch.zeros((), device=self.context.device)
        for i, (inputs, target, known) in enumerate(parts):
            unsynced = i < len(parts) - 1 and isinstance(self.forward, nn.parallel.DistributedDataParallel)
            with self.forward.no_sync() if unsynced else contextlib.nullcontext():  # type: ignore[operator]
                loss = self._part_loss(inputs, target, known) * len(target)
                if i >= filled:  # only the other processes have images for this part
                    loss = loss * 0.0
                # gradients are averaged over processes: this makes it the mean over the images of all of them
                self.scaler.scale(loss * (self.context.world_size / images)).backward()
                loss_sum += loss.detach()
        return loss_sum

    def _known_targets(self, batch: Batch, count: int) -> list[TeacherOutputs | None]:
        """Return the teacher's outputs in `count` chunks, None if they are computed from the mixed images."""
        distillation = self.distillation
        if distillation is None or distillation.cache is None or not len(batch.labels):
            return [None] * count
        targets = distillation.batch_targets(batch, self.context.device)
        chunks = [[None] * count if value is None else value.chunk(count) for value in targets]
        return [TeacherOutputs(*values) for values in zip(*chunks, strict=False)]  # a small batch has fewer chunks

    def _part_loss(self, x: Tensor, target: Tensor, known: TeacherOutputs | None) -> Tensor:
        """Return the mean loss of rendered (B,C,H,W) images, a scalar. known: the teacher's outputs, if not None."""
        distillation, weight = self.distillation, self.config.distill_weight
        outputs = self._outputs(self.forward, x)
        if distillation is None:
            assert outputs.logits is not None
            return self._loss(outputs.logits, target)
        distilled = distillation.loss(outputs, distillation.targets(x) if known is None else known)
        if not self.config.uses_labels:
            return distilled
        assert outputs.logits is not None
        return (1 - weight) * self._loss(outputs.logits, target) + weight * distilled

    def _outputs(self, forward: nn.Module, x: Tensor) -> StudentOutputs:
        """Return the outputs of the model, or of the model with its projection, for rendered (B,C,H,W) images."""
        if self.distillation is not None:
            x = self.distillation.student_input(x)
            if self.config.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            outputs = forward(x)
        if self.projection is None:
            return StudentOutputs(outputs.float(), None)
        logits, embedding = outputs
        return StudentOutputs(None if logits is None else logits.float(), embedding.float())

    def _autocast(self) -> torch.autocast:
        precision = self.config.precision
        return torch.autocast(self.context.device.type, _DTYPES[precision], enabled=precision != "float32")

    def _inputs(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Return normalized, mixed (B,C,H,W) images on the device, and their (B,K) or (B,) targets."""
        config, device = self.config, self.context.device
        x, labels = batch.x.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
        if not len(labels):  # none could be read here; a forward pass is needed because the other processes wait for it
            x = torch.zeros(1, *self.rendered, self.spec.channels, dtype=torch.uint8, device=device)
            labels = labels.new_zeros(1)
        if x.dtype == torch.uint8:
            x = normalise(x, self.spec)
        rng = np.random.default_rng([config.seed, _MIX, step, self.context.rank])
        x, partners, fractions = mix(x, labels, rng, config.mixing)
        if config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if not config.uses_labels:
            return x, labels
        return x, labelled_targets(labels, partners, fractions, self.model.num_classes, config.label_smoothing)

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return (
            labelled_binary_loss(logits, target) if self.config.loss == "binary" else soft_target_loss(logits, target)
        )

    @property
    def rendered(self) -> tuple[int, int]:
        """Height and width of the images of a batch, in pixels."""
        return (self.spec.height, self.spec.width) if self.distillation is None else self.distillation.rendered

    @torch.no_grad()
    def compare(self, batch: Batch) -> tuple[float, float]:
        """Return the sums over a batch of rendered pixels of (the agreement with the teacher, the loss).

        Every process must call it equally often; the batch may be empty.
        """
        assert self.distillation is not None
        forward: nn.Module = self.eval_model
        if self.projection is not None:
            model = self.model if self.ema is None else self.ema
            forward = self._student(model, self.ema_projection or self.projection)
        forward.eval()
        count = len(batch.labels)
        x = batch.x if count else torch.zeros(1, *self.rendered, self.spec.channels, dtype=torch.uint8)
        x = normalise(x.to(self.context.device), self.spec)
        outputs, targets = self._outputs(forward, x), self.distillation.targets(x)
        if not count:
            return 0.0, 0.0
        return self.distillation.score(outputs, targets), float(self.distillation.loss(outputs, targets)) * count

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """Return the (B,K) float32 logits of a batch of pixels, on the CPU.

        Every process must call it equally often, as the weights may be sharded; the batch may be empty.
        """
        model = self.eval_model.eval()
        x = batch.x if len(batch.labels) else torch.zeros(1, self.spec.height, self.spec.width, self.spec.channels)
        x = normalise(x.to(self.context.device), self.spec)
        if self.config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            logits: Tensor = model(x)
        return logits[: len(batch.labels)].float().cpu()

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        """Update the averaged weights.

        The decay is lower in the first steps if training starts from random weights, which are soon irrelevant.
        """
        if self.ema is None:
            return
        decay = self.config.ema_decay if self.config.probe else min(self.config.ema_decay, (1 + step) / (10 + step))
        pairs: list[tuple[nn.Module, nn.Module]] = [(self.ema, self.model)]
        if self.ema_projection is not None and self.projection is not None:
            pairs.append((self.ema_projection, self.projection))
        for averaged, current in pairs:
            for average, value in zip(averaged.state_dict().values(), current.state_dict().values(), strict=True):
                if average.is_floating_point():
                    average.lerp_(value, 1 - decay)
                else:
                    average.copy_(value)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of a checkpoint; every process must call it."""
        parts = dict(model={name: full_tensor(value) for name, value in self.model.state_dict().items()})
        if self.ema is not None:
            parts["ema"] = {name: full_tensor(value) for name, value in self.ema.state_dict().items()}
        parts["optimizer"] = {
            f"{name}/{key}": full_tensor(value)
            for name, parameter in self._named_parameters().items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }
        return parts | {name: dict(values) for name, values in self._distillation_state().items()}

    def _named_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the model and of the projection, whose names have a prefix of their own."""
        named = dict(self.model.named_parameters())
        if self.projection is not None:
            named |= {f"{_PROJECTION}.{name}": value for name, value in self.projection.named_parameters()}
        return named

    def _distillation_state(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors that only the distillation of embeddings has, by part of a checkpoint."""
        if self.projection is None or self.distillation is None:
            return {}
        state = {_PROJECTION: self.projection.state_dict(), "center": self.distillation.center}
        return (
            state if self.ema_projection is None else state | {f"ema_{_PROJECTION}": self.ema_projection.state_dict()}
        )

    def state(self) -> dict[str, object]:
        """Return the rest of a checkpoint, for JSON."""
        return dict(scaler=self.scaler.state_dict())

    @torch.no_grad()
    def restore(self, saved: TrainingCheckpoint) -> int:
        """Load a checkpoint and return the number of steps done.

        Raises WeightsError `damaged_checkpoint` if it belongs to a different model.
        """
        modules = {"model": self.model} | ({} if self.ema is None else {"ema": self.ema})
        for part, module in modules.items():
            current, stored = module.state_dict(), saved.tensors.get(part, {})
            if {name: x.shape for name, x in current.items()} != {name: x.shape for name, x in stored.items()}:
                raise WeightsError(
                    "damaged_checkpoint",
                    f"the checkpoint at step {saved.state.get('step')} does not fit the model in train.json",
                    hint="give another --out",
                )
            for name, value in current.items():
                value.copy_(shard_like(value, stored[name]))
        self._restore_distillation(saved)
        parameters = self._named_parameters()
        for full_name, value in saved.tensors["optimizer"].items():
            name, _, key = full_name.rpartition("/")
            parameter = parameters[name]
            if value.ndim == parameter.ndim and value.shape == parameter.shape:
                # in the parameter's memory format, on which the fused optimizer relies
                state = torch.zeros_like(parameter)
                state.copy_(shard_like(parameter, value))
            else:  # the number of steps
                state = value.to(parameter.device if self.optimizer.defaults.get("fused") else "cpu")
            self.optimizer.state[parameter][key] = state
        self.scaler.load_state_dict(saved.state["scaler"])
        return int(saved.state["step"])

    def _restore_distillation(self, saved: TrainingCheckpoint) -> None:
        if self.projection is None or self.distillation is None:
            return
        stored = {name: saved.tensors.get(name, {}) for name in (_PROJECTION, f"ema_{_PROJECTION}", "center")}
        width = self.projection.out_features
        try:
            self.projection.load_state_dict(stored[_PROJECTION])
            if self.ema_projection is not None:
                self.ema_projection.load_state_dict(stored[f"ema_{_PROJECTION}"])
            center = {name: stored["center"][name].to(self.context.device) for name in ("mean", "std")}
            if any(value.shape != (width,) for value in center.values()):
                raise ValueError("the center has a different width")
        except (RuntimeError, KeyError, ValueError):
            raise WeightsError(
                "damaged_checkpoint",
                "the checkpoint is from a run with a different teacher",
                hint="delete the checkpoints, or give another --out",
            ) from None
        self.distillation.center = center


def _shard(model: ImageModel) -> None:
    """Shard the weights over the processes, block by block."""
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
