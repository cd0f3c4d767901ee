"""What a training step changes: a model with its optimizer and averaged weights, in one process or in several."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import os
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.loader import Batch
from ..data.mix import binary_loss, mix, soft_target_loss, targets
from ..data.resize import check_geometry
from ..data.spec import InputSpec, resolve_model_data_config
from ..data.transforms import normalise
from ..errors import ImageError, TessellaError, UsageError, WeightsError
from ..models import ARCHITECTURES
from ..models.base import ImageModel
from ..weights.factory import architecture_of, create_model
from ..weights.load import image_size
from .checkpoint import Checkpoint
from .config import TrainConfig

_MIX, _STEP = 3, 4  # as in data/loader.py: what the random numbers are for
SMALL = 256  # pixels
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Process:
    """This process among those that train together: rank 0 writes."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    leaves: bool = False  # whether the group is ours to end

    @classmethod
    def join(cls, device: str = "auto") -> Process:
        """By what torchrun, Ray Train and other launchers set: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and _PORT."""
        world, local, rank = _number("WORLD_SIZE", 1), _number("LOCAL_RANK", 0), _number("RANK", 0)
        kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        chosen = usable_device(f"{kind}:{local}" if kind == "cuda" and world > 1 else kind)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        leaves = world > 1 and not dist.is_initialized()
        if leaves:
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        return cls(rank, world, chosen, leaves)

    def leave(self) -> None:
        """When all is done: others wait for the one that writes."""
        if self.leaves:
            dist.barrier()
            dist.destroy_process_group()

    def total(self, *numbers: float) -> list[float]:
        """The sums over all processes."""
        if self.world == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()


def _number(name: str, default: int) -> int:
    """What a launcher set in an environment variable."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UsageError("bad_argument", f"the environment variable {name} is {text!r}, expected a number")
    return int(text)


def usable_device(name: str) -> torch.device:
    """The device of that name; UsageError `bad_argument` where it is unknown or nothing can be computed on it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # the meta device holds no values
    except (RuntimeError, AssertionError, ValueError):
        raise UsageError(
            "bad_argument", f"device {name!r} is not available here", hint="use cpu, or see `tessella doctor`"
        ) from None
    return device


class Step(NamedTuple):
    """What a step was, over all processes: loss is the mean, norm the length of the gradient."""

    loss: float
    norm: float
    images: int
    taken: bool  # False where either is not finite
    stop: bool  # whether any process was asked to stop
    overdue: bool  # or to save


class Student:
    """The model that learns, with its optimizer and averaged weights: all that a step changes."""

    def __init__(self, model: ImageModel, spec: InputSpec, config: TrainConfig, process: Process, shard: bool):
        self.model, self.spec, self.config, self.process = model, spec, config, process
        model.set_grad_checkpointing(config.grad_checkpointing)
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from torch's overloads
        if process.world > 1 and process.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # there is none for the CPU
        self.ema = copy.deepcopy(model).requires_grad_(False) if config.ema else None
        for one in (model, self.ema) if shard else ():
            if one is not None:
                _shard(one)
        groups = parameter_groups(model, config)
        if config.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, config.lr, momentum=config.momentum)
        else:
            self.optimizer = torch.optim.AdamW(groups, config.lr, eps=config.eps, fused=not shard)
        self.learned = [parameter for group in groups for parameter in group["params"]]
        parameters = dict(model.named_parameters())
        self.statistics = [value for name, value in model.state_dict().items() if name not in parameters]
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=config.precision == "float16")
        if config.compile:
            model.compile()
        self.call: nn.Module = model
        if process.world > 1 and not shard:
            on = [process.device] if process.device.type == "cuda" else None
            self.call = nn.parallel.DistributedDataParallel(model, device_ids=on, find_unused_parameters=False)

    def train(self) -> None:
        """Put the model into training mode, save for batch norms whose statistics are to stay as they are."""
        self.model.train(self.config.part == "all")
        if self.config.keep_statistics:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    @property
    def shown(self) -> nn.Module:
        """What is evaluated and kept."""
        return self.model if self.ema is None else self.ema

    def step(self, batch: Batch, step: int, rate: float, teacher: Teacher | None, stop: bool, overdue: bool) -> Step:
        """Learn from one batch, unless its loss or its gradient is not finite."""
        config, device = self.config, self.process.device
        # dropout and stochastic depth are a function of the step too
        torch.manual_seed(int(np.random.default_rng([config.seed, _STEP, step, self.process.rank]).integers(2**62)))
        images, stops, saves = self.process.total(len(batch.labels), stop, overdue)
        if not images:  # none could be read, by any process
            return Step(0.0, 0.0, 0, True, stops > 0, saves > 0)
        before = [value.clone() for value in self.statistics]
        x, answers = self._inputs(batch, step)
        parts = list(zip(x.chunk(config.accumulate), answers.chunk(config.accumulate), strict=True))
        summed = torch.zeros((), device=device)
        for i, (inputs, wanted) in enumerate(parts):
            alone = i < len(parts) - 1 and isinstance(self.call, nn.parallel.DistributedDataParallel)
            with self.call.no_sync() if alone else contextlib.nullcontext():  # type: ignore[operator]
                with self._autocast():
                    logits = self.call(inputs).float()
                loss = self._loss(logits, wanted) * len(wanted)
                if teacher is not None:
                    taught = teacher.loss(inputs, logits, config) * len(wanted)
                    loss = (1 - config.distill_weight) * loss + config.distill_weight * taught
                if not len(batch.labels):  # this process waits for the others
                    loss = loss * 0.0
                # gradients are averaged over processes: this makes it the mean over the images of all of them
                self.scaler.scale(loss * (self.process.world / images)).backward()
                summed += loss.detach()
        self.scaler.unscale_(self.optimizer)
        grads = [parameter.grad for parameter in self.learned if parameter.grad is not None]
        norm = _whole(torch.nn.utils.get_total_norm(grads))
        mean = self.process.total(summed.item())[0] / images
        taken = math.isfinite(mean) and math.isfinite(norm.item())
        if taken:
            if config.clip_norm:
                torch.nn.utils.clip_grads_with_norm_(self.learned, config.clip_norm, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            self.scaler.step(self.optimizer)
            self._average(step)
        else:  # the pass has counted them already
            for value, old in zip(self.statistics, before, strict=True):
                value.copy_(old)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        # a scale that is too high for float16 is found by trying
        fine = taken or (self.scaler.is_enabled() and math.isfinite(mean))
        return Step(mean, norm.item(), int(images), fine, stops > 0, saves > 0)

    def _autocast(self) -> torch.autocast:
        config = self.config
        return torch.autocast(
            self.process.device.type, _DTYPES[config.precision], enabled=config.precision != "float32"
        )

    def _inputs(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Normalised, mixed (B,C,H,W) images on the device, and (B,K) or (B,) answers."""
        config, device = self.config, self.process.device
        x, labels = batch.x.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
        if not len(labels):  # none could be read here: a pass that counts nothing, as the other processes wait for it
            x = torch.zeros(1, self.spec.height, self.spec.width, self.spec.channels, dtype=torch.uint8, device=device)
            labels = labels.new_zeros(1)
        if x.dtype == torch.uint8:
            x = normalise(x, self.spec)
        classes = self.model.num_classes
        rng = np.random.default_rng([config.seed, _MIX, step, self.process.rank])
        x, partners, shares = mix(x, labels, rng, config.mixing)
        if config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return x, targets(labels, partners, shares, classes, config.smoothing)

    def _loss(self, logits: Tensor, answers: Tensor) -> Tensor:
        return binary_loss(logits, answers) if self.config.loss == "binary" else soft_target_loss(logits, answers)

    @torch.no_grad()
    def answers(self, batch: Batch) -> Tensor:
        """(B,K) float32 logits, on the CPU, of pixels; each process must call it as often."""
        shown = self.shown.eval()
        x = batch.x if len(batch.labels) else torch.zeros(1, self.spec.height, self.spec.width, self.spec.channels)
        x = normalise(x.to(self.process.device), self.spec)
        if self.config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            logits: Tensor = shown(x)
        return logits[: len(batch.labels)].float().cpu()

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """Random weights are forgotten faster in the first steps; those of a linear probe are as good as any."""
        if self.ema is None:
            return
        decay = self.config.ema if self.config.probe else min(self.config.ema, (1 + step) / (10 + step))
        old, new = self.ema.state_dict().values(), self.model.state_dict().values()
        for a, b in zip(old, new, strict=True):
            if a.is_floating_point():
                a.lerp_(b, 1 - decay)
            else:
                a.copy_(b)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """For a checkpoint; each process must call it."""
        parts = dict(model={name: _whole(value) for name, value in self.model.state_dict().items()})
        if self.ema is not None:
            parts["ema"] = {name: _whole(value) for name, value in self.ema.state_dict().items()}
        parts["optimizer"] = {
            f"{name}/{key}": _whole(value)
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }
        return parts

    def state(self) -> dict[str, Any]:
        return dict(scaler=self.scaler.state_dict())

    @torch.no_grad()
    def restore(self, saved: Checkpoint) -> int:
        """Take over a checkpoint; returns the number of steps that were done. WeightsError `damaged_checkpoint`."""
        targets = {"model": self.model} | ({} if self.ema is None else {"ema": self.ema})
        for part, module in targets.items():
            own, found = module.state_dict(), saved.tensors.get(part, {})
            if {name: value.shape for name, value in own.items()} != {n: value.shape for n, value in found.items()}:
                raise WeightsError(
                    "damaged_checkpoint",
                    f"the checkpoint at step {saved.state.get('step')} is of another model than the one in train.json",
                    hint="give another --out",
                )
            for name, value in own.items():
                value.copy_(_like(value, found[name]))
        parameters = dict(self.model.named_parameters())
        for full, value in saved.tensors["optimizer"].items():
            name, _, key = full.rpartition("/")
            parameter = parameters[name]
            if value.ndim == parameter.ndim and value.shape == parameter.shape:
                # in the parameter's memory format, which the fused optimizer relies on
                state = torch.zeros_like(parameter)
                state.copy_(_like(parameter, value))
            else:  # the count of steps
                state = value.to(parameter.device if self.optimizer.defaults.get("fused") else "cpu")
            self.optimizer.state[parameter][key] = state
        self.scaler.load_state_dict(saved.state["scaler"])
        return int(saved.state["step"])


def _shard(model: ImageModel) -> None:
    """Divide the weights over the processes, block by block."""
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)


def _whole(value: Tensor) -> Tensor:
    """What the processes hold parts of, put together; each must call it."""
    whole: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole


def _like(own: Tensor, value: Tensor) -> Tensor:
    """`value` divided over the processes as `own` is."""
    if not hasattr(own, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(own, DTensor)
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)


def parameter_groups(model: ImageModel, config: TrainConfig) -> list[dict[str, Any]]:
    """Parameters that learn, by weight decay and by `scale`, the factor of their learning rate.

    No decay for vectors, biases, and what the model excludes. Layer k of n from the stem has layer_decay ** (n - k).
    """
    excluded = model.no_weight_decay()
    head = {id(parameter) for parameter in model.get_classifier().parameters()}
    layers = layers_of(model)
    last = max(layers.values())
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if config.part == "head" and id(parameter) not in head:
            parameter.requires_grad_(False)
            continue
        plain = parameter.ndim <= 1 or name.endswith(".bias") or name in excluded
        decay, scale = 0.0 if plain else config.weight_decay, config.layer_decay ** (last - layers[name])
        group = groups.setdefault((decay, scale), dict(params=[], weight_decay=decay, scale=scale, lr=config.lr))
        group["params"].append(parameter)
    return list(groups.values())


def layers_of(model: ImageModel) -> dict[str, int]:
    """The layer of each parameter, by `group_matcher`: the stem is 0, the head the last."""
    matcher = model.group_matcher()
    patterns: list[tuple[int, str, tuple[int, ...] | None]] = [(0, matcher["stem"], (0,))]
    blocks = matcher["blocks"]
    patterns += [(1, pattern, fixed) for pattern, fixed in ([(blocks, None)] if isinstance(blocks, str) else blocks)]
    places: dict[str, tuple[float, ...]] = {}
    for name, _ in model.named_parameters():
        for order, pattern, fixed in patterns:
            if found := re.match(pattern, name):
                places[name] = (order, *(fixed if fixed is not None else map(int, found.groups())))
                break
        else:
            places[name] = (math.inf,)
    numbered = [place for place in sorted(set(places.values())) if place[-1] != 99999]  # 99999: with the one before
    index = {place: i for i, place in enumerate(numbered)}
    before = max(i for place, i in index.items() if place[0] <= 1)
    return {name: index.get(place, before) for name, place in places.items()}


def new_model(config: TrainConfig, classes: tuple[str, ...]) -> tuple[ImageModel, InputSpec]:
    """The model with its head for the classes, and how its images are prepared."""
    arch = architecture_of(config.model)
    sized = config.img_size and "img_size" in (field.name for field in dataclasses.fields(ARCHITECTURES[arch][1]))
    given: dict[str, Any] = dict(config.model_args)
    given |= dict(img_size=config.img_size) if sized else {}  # a ConvMixer reads any size
    given |= dict(drop_path_rate=config.drop_path) if config.drop_path else {}
    trained = config.start == "pretrained"
    try:
        model = create_model(
            config.model,
            pretrained=trained,
            checkpoint_path=None if trained or config.start == "scratch" else config.start,
            num_classes=len(classes),
            **given,
        )
    except TessellaError:
        raise
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError, AssertionError) as error:
        raise UsageError(
            "bad_argument",
            f"no {arch} can be made with {', '.join(f'{k}={v!r}' for k, v in given.items())}: {error}"[:500],
            hint="see model_args in the config, and --img-size",
        ) from error
    asked = dict(img_size=config.img_size or image_size(model), mean=config.mean, std=config.std)
    spec = InputSpec.from_cfg(resolve_model_data_config(model, asked | dict(crop_pct=config.crop_pct)))
    if config.img_size:
        _check_size(model, spec)
    model.pretrained_cfg = {**model.pretrained_cfg, **spec.to_cfg()}
    return model, spec


def _check_size(model: ImageModel, spec: InputSpec) -> None:
    """Refuse an image size that the model cannot read, or that no image may be resized to."""
    try:
        check_geometry(spec.height, spec.width, spec)
    except ImageError as error:
        raise UsageError("wrong_input_size", f"images of {spec.width}x{spec.height} px: {error.message}") from None
    if max(spec.height, spec.width) <= SMALL:  # it costs nothing to try
        training = model.training
        with torch.no_grad():
            model.eval()(torch.zeros(1, spec.channels, spec.height, spec.width))
        model.train(training)


@dataclass
class Teacher:
    """A trained model whose answers are learned beside the labels."""

    model: nn.Module
    own: InputSpec  # its images: another mean and std than the student's
    student: InputSpec

    @torch.no_grad()
    def answers(self, x_BCHW: Tensor) -> Tensor:
        def column(values: tuple[float, ...]) -> Tensor:
            return torch.tensor(values, device=x_BCHW.device)[:, None, None]

        pixels = x_BCHW * column(self.student.std) + column(self.student.mean)
        logits: Tensor = self.model((pixels - column(self.own.mean)) / column(self.own.std))
        return logits.float()

    def loss(self, x_BCHW: Tensor, logits: Tensor, config: TrainConfig) -> Tensor:
        """Mean over the batch: cross-entropy with the teacher's class, or divergence from its distribution."""
        taught = self.answers(x_BCHW)
        if config.distill == "hard":
            return F.cross_entropy(logits, taught.argmax(1))
        heat = config.distill_temperature
        near = F.kl_div(F.log_softmax(logits / heat, 1), F.log_softmax(taught / heat, 1), None, None, "batchmean", True)
        return near * heat**2  # so that its gradients do not fade as the temperature rises


def new_teacher(config: TrainConfig, student: InputSpec, classes: int, device: torch.device) -> Teacher:
    model = create_model(config.teacher, pretrained=True).to(device).eval().requires_grad_(False)
    if model.num_classes != classes:
        raise UsageError(
            "bad_argument",
            f"the teacher {config.teacher} knows {model.num_classes} classes, the data has {classes}",
            hint="fine-tune the teacher on this data first and give its folder, local-dir:FOLDER",
        )
    return Teacher(model, InputSpec.from_cfg(model.pretrained_cfg), student)
