"""Deterministic weights and inputs of the golden values: the rule of `golden/README.md`, in code."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor, nn

SEED = "tessella-golden-1"


def normal(*key: str, shape: tuple[int, ...]) -> np.ndarray:
    digest = hashlib.sha256("/".join(key).encode()).digest()
    bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    return np.random.Generator(bits).standard_normal(shape, dtype=np.float32)


def golden_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value of one state-dict entry, by the first rule of the table that fits."""
    last = name.rpartition(".")[2]
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    z = normal(SEED, name, "x".join(map(str, shape)), shape=shape)
    one, tenth = np.float32(1), np.float32(0.1)
    if last == "running_mean":
        z = tenth * z
    elif last == "running_var":
        z = one + np.float32(0.25) * np.abs(z)
    elif last == "gating_param":
        pass
    elif last.startswith(("pos_embed", "cls_token")):
        z = np.float32(0.2) * z
    elif last == "alpha":
        z = one + tenth * z
    elif last == "beta":
        z = tenth * z
    elif last in ("ls1", "ls2"):
        z = np.float32(0.3) + tenth * z
    elif "pos_proj" in name.split("."):
        z = np.float32(0.3) * z
    elif last == "bias":
        z = tenth * z
    elif len(shape) == 1:
        z = one + tenth * z
    else:
        fan_in = int(np.prod(shape[1:]))
        scale = 0.5 * fan_in**-0.5 if name.endswith("fc2.weight") else fan_in**-0.5
        z = z * np.float32(scale)
    return torch.from_numpy(np.ascontiguousarray(z))


def fill_golden(model: nn.Module) -> nn.Module:
    """Load the golden weights, strictly, and put the model in evaluation mode."""
    state = {name: golden_tensor(name, tuple(value.shape)) for name, value in model.state_dict().items()}
    model.load_state_dict(state, strict=True)
    return model.eval()


def golden_input(height: int, width: int) -> Tensor:
    """(2,3,height,width) float32."""
    return torch.from_numpy(normal(SEED, "input", f"2x3x{height}x{width}", shape=(2, 3, height, width)))
