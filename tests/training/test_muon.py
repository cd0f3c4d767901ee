"""Muon: orthogonalized updates of weight matrices, AdamW for everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tessella.training.model import build_model, parameter_groups
from tessella.training.muon import Muon, orthogonalize

from .small_runs import CLASSES, FAMILIES, epochs_of, run, small


def random_parameter(*shape: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("shape", [(24, 24), (8, 40), (40, 8)])
def test_singular_values_become_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrices = torch.stack([random_parameter(*shape, seed=seed) for seed in range(3)]).detach()
    found = orthogonalize(matrices)
    for matrix, result in zip(matrices, found, strict=True):
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        values = u.T @ result @ vh.T
        assert values.diag().min() > 0.6
        assert values.diag().max() < 1.25
        torch.testing.assert_close(values, torch.diag(values.diag()), rtol=0, atol=1e-4)
        torch.testing.assert_close(result, orthogonalize(matrix[None])[0])


def test_a_gradient_of_zeros_changes_nothing_but_the_decay() -> None:
    assert torch.equal(orthogonalize(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))
    parameter = random_parameter(3, 4)
    before = parameter.detach().clone()
    optimizer = Muon([dict(params=[parameter], orthogonalize=True)], lr=0.1, weight_decay=0.5)
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), before * 0.95)


def test_updates_are_those_of_pytorch() -> None:
    """PyTorch's Muon computes in bfloat16, so single numbers differ by some percent."""
    ours, theirs = random_parameter(32, 48), random_parameter(32, 48)
    muon = Muon([dict(params=[ours], orthogonalize=True)], lr=0.01, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = ours.detach().clone()
    for seed in range(1, 6):
        ours.grad = random_parameter(32, 48, seed=seed).detach()
        theirs.grad = ours.grad.clone()
        muon.step()
        reference.step()
    moved, expected = ours.detach() - start, theirs.detach() - start
    assert (moved - expected).norm() < 0.03 * expected.norm()


def test_an_update_has_the_size_of_one_of_adamw() -> None:
    parameter = random_parameter(64, 96)
    optimizer = Muon([dict(params=[parameter], orthogonalize=True)], lr=0.01, weight_decay=0.0)
    before = parameter.detach().clone()
    parameter.grad = random_parameter(64, 96, seed=1).detach()
    optimizer.step()
    change = (parameter.detach() - before).square().mean().sqrt().item()
    assert 0.7 * 0.2 * 0.01 < change < 1.2 * 0.2 * 0.01


def test_kernels_of_convolutions_are_matrices_of_all_their_inputs() -> None:
    kernel, matrix = random_parameter(8, 4, 3, 3), nn.Parameter(random_parameter(8, 4, 3, 3).detach().flatten(1))
    kernel.data = kernel.data.to(memory_format=torch.channels_last)
    for parameter in (kernel, matrix):
        optimizer = Muon([dict(params=[parameter], orthogonalize=True)], lr=0.1)
        parameter.grad = random_parameter(8, 4, 3, 3, seed=1).detach().view(parameter.shape)
        optimizer.step()
    torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach())


def test_other_parameters_are_trained_by_adamw() -> None:
    ours, theirs, frozen = random_parameter(5, 5), random_parameter(5, 5), random_parameter(5, 5)
    groups: list[dict[str, Any]] = [dict(params=[random_parameter(3, 3)], orthogonalize=True)]
    muon = Muon([*groups, dict(params=[ours, frozen])], lr=0.1)
    adamw = torch.optim.AdamW([theirs], lr=0.1)
    for seed in range(1, 4):
        ours.grad = random_parameter(5, 5, seed=seed).detach()
        theirs.grad = ours.grad.clone()
        muon.step()
        adamw.step()
    assert torch.equal(ours, theirs)
    assert torch.equal(frozen, random_parameter(5, 5))


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_matrices_are_orthogonalized(family: str) -> None:
    config = small(family, optimizer="muon")
    model, _ = build_model(config, CLASSES)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, config)
    chosen = {names[id(p)] for group in groups if group["orthogonalize"] for p in group["params"]}
    assert sorted(names[id(p)] for group in groups for p in group["params"]) == sorted(names.values())
    hidden = [
        name
        for module_name, module in model.named_modules()
        for name in [f"{module_name}.weight"]
        if isinstance(module, nn.Linear | nn.Conv2d) and "blocks." in name and min(module.weight.shape[:2]) > 1
    ]
    assert chosen == set(hidden)
    assert len(chosen) >= 2
    for group in parameter_groups(model, small(family)):
        assert not group["orthogonalize"]


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("changes", [dict(channels_last=True), dict(layer_decay=0.9), dict(precision="bfloat16")])
def test_models_learn(data: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    config = small("convmixer_768_32", optimizer="muon", max_grad_norm=1.0, **changes)
    epochs = epochs_of(run(data, tmp_path / "run", config))
    assert epochs[-1].loss < epochs[0].loss
