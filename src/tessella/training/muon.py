"""Muon: AdamW, except that the updates of weight matrices are orthogonalized.

The momentum of a weight matrix is replaced by the nearest matrix with equal singular values, so that directions in
which gradients are small are learned as fast as the others (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon; the successors of arXiv:2404.00498 use it for CIFAR-10). With the scale of
arXiv:2502.16982, an update has the root mean square of one of AdamW, so both take the same learning rates and weight
decay.

`torch.optim.Muon` takes matrices only, not the kernels of convolutions, and computes in bfloat16, which is slow on CPUs
without instructions for it. Here, matrices of the same shape are computed together in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .distributed import full_tensor, shard_like

_MOMENTUM = 0.95
# Newton-Schulz iteration X <- aX + (bA + cA²)X with A = XXᵀ: five steps take singular values of 0.01 to 1 to 0.7 to 1.2
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_RMS = 0.2  # root mean square of a typical update of AdamW, relative to the learning rate


class Muon(torch.optim.AdamW):
    """AdamW with orthogonalized updates for the groups of parameters that have `orthogonalize=True`.

    The parameters of these groups have at least two dimensions; the first one has the outputs, all others are inputs.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; the gradients of orthogonalized ones are consumed."""
        for group in self.param_groups:
            if group.get("orthogonalize"):
                self._step_matrices(group)
        return super().step(closure)  # skips parameters without a gradient

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, int], list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                outputs = len(parameter)
                by_shape.setdefault((outputs, parameter.numel() // outputs), []).append(parameter)
        for (outputs, inputs), parameters in by_shape.items():
            updates = orthogonalize(torch.stack(self._momenta(parameters)))
            rate = group["lr"] * _RMS * max(outputs, inputs) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(shard_like(parameter, update.view(parameter.shape)), alpha=rate)
                parameter.grad = None

    def _momenta(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        """Add the gradients to the moving averages, and return Nesterov's momentum of each as a matrix."""
        found = []
        for parameter in parameters:
            grad, state = parameter.grad, self.state[parameter]
            assert grad is not None
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(grad, 1 - _MOMENTUM)
            found.append(full_tensor(grad.lerp(state["momentum"], _MOMENTUM)).flatten(1))
        return found


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return matrices (B,M,N) with the same singular vectors, and singular values near 1.

    Values below about a hundredth of the norm stay smaller, and zeros stay zero.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalize(matrices.mT).mT
    a, b, c = _COEFFICIENTS
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def is_matrix(shape: Sequence[int]) -> bool:
    """Return whether a parameter of this shape maps several inputs to several outputs, unlike a depthwise kernel."""
    return len(shape) >= 2 and min(shape[0], shape[1]) > 1
