"""Distributed training: the rank, the device and the process group of this process."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UsageError


@dataclass(frozen=True)
class DistributedContext:
    """Rank, number of processes and device of this process; rank 0 writes the files.

    owns_group: whether `shutdown` ends the process group, which `init` has started.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    owns_group: bool = False

    @classmethod
    def init(cls, device: str = "auto") -> DistributedContext:
        """Join the process group that torchrun, Ray Train or another launcher has announced in the environment.

        The variables are RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; without them there is one process.
        Raises UsageError `bad_argument` for a device that is not available, or a variable that is not a number.
        """
        world_size = _read_number("WORLD_SIZE", 1)
        local_rank, rank = _read_number("LOCAL_RANK", 0), _read_number("RANK", 0)
        kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        chosen = usable_device(f"{kind}:{local_rank}" if kind == "cuda" and world_size > 1 else kind)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        owns_group = world_size > 1 and not dist.is_initialized()
        if owns_group:
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        return cls(rank, world_size, chosen, owns_group)

    def shutdown(self) -> None:
        """Wait for all processes, then end the process group."""
        if self.owns_group:
            dist.barrier()
            dist.destroy_process_group()

    def all_reduce_sum(self, *numbers: float) -> list[float]:
        """Return the sum of each number over all processes; every process must call it."""
        if self.world_size == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()


def _read_number(name: str, default: int) -> int:
    """Return the number in an environment variable that a launcher sets."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UsageError("bad_argument", f"the environment variable {name} is {text!r}, expected a number")
    return int(text)


def usable_device(name: str) -> torch.device:
    """Return the device of that name; raises UsageError `bad_argument` if it cannot compute."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # the meta device holds no values
    except (RuntimeError, AssertionError, ValueError):
        raise UsageError(
            "bad_argument",
            f"device {name!r} is not available on this machine",
            hint="use cpu, or see `tessella doctor`",
        ) from None
    return device


def full_tensor(value: Tensor) -> Tensor:
    """Return a tensor of any shape (...) without sharding; every process must call it."""
    full: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return full


def shard_like(reference: Tensor, value: Tensor) -> Tensor:
    """Return `value` (...) sharded over the processes as `reference`, which has the same shape, is."""
    if not hasattr(reference, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(reference, DTensor)
    return distribute_tensor(value.to(reference.device), reference.device_mesh, reference.placements)
