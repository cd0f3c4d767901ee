"""Training steps: what they change, and that values which are not finite change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch._dynamo
from torch import Tensor

from tessella.data.loader import Batch
from tessella.errors import TrainingError, UsageError
from tessella.training import checkpoint
from tessella.training.distributed import DistributedContext
from tessella.training.model import build_model
from tessella.training.trainer import Trainer

from .small_runs import CLASSES, FAMILIES, epochs_of, losses, run, small


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int], value: float, where: str) -> list[dict[str, Tensor]]:
    """Make loss, gradient or input not finite at some steps; return the list to which each step appends its weights."""
    states: list[dict[str, Tensor]] = []
    step, loss, inputs = Trainer.step, Trainer._loss, Trainer._inputs
    current = 0

    def recorded_step(self: Trainer, batch: Any, number: int, *rest: Any) -> Any:
        nonlocal current
        current = number
        if not states:
            states.append({name: value.clone() for name, value in self.model.state_dict().items()})
        result = step(self, batch, number, *rest)
        states.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return result

    def poisoned_loss(self: Trainer, logits: Tensor, targets: Tensor) -> Tensor:
        result = loss(self, logits, targets)
        if current not in steps or where == "input":
            return result
        if where == "loss":
            return result * value
        result.register_hook(lambda gradient: gradient * value)  # the loss itself stays finite
        return result

    def poisoned_inputs(self: Trainer, batch: Any, number: int) -> tuple[Tensor, Tensor]:
        x, targets = inputs(self, batch, number)
        if number in steps and where == "input":
            x[0, 0, 0, 0] = value
        return x, targets

    monkeypatch.setattr(Trainer, "step", recorded_step)
    monkeypatch.setattr(Trainer, "_loss", poisoned_loss)
    monkeypatch.setattr(Trainer, "_inputs", poisoned_inputs)
    return states


@pytest.mark.parametrize("where", ["loss", "gradient", "input"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("model", FAMILIES)
def test_a_step_that_is_not_finite_changes_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, value: float, where: str
) -> None:
    states = poison(monkeypatch, {4}, value, where)
    with pytest.raises(TrainingError, match="step 5: the loss is") as caught:
        run(data, tmp_path / "run", small(model))
    assert (caught.value.code, caught.value.exit_code) == ("diverged", 7)
    for name, after in states[-1].items():  # batch statistics too
        assert torch.equal(after, states[-2][name]), name
    assert any(not torch.equal(after, states[-3][name]) for name, after in states[-2].items())
    assert checkpoint.checkpoint_ids(tmp_path / "run") == [4]  # nothing was saved after it


@pytest.mark.usefixtures("without_report")
def test_at_most_ten_bad_steps_are_skipped(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        states = poison(patch, {4, 5}, float("nan"), "loss")
        events = run(data, tmp_path / "run", small(on_bad_loss="skip"))
        assert torch.equal(states[4]["head.weight"], states[6]["head.weight"])
    epochs = epochs_of(events)
    assert [epoch.bad_steps for epoch in epochs] == [0, 2, 0]
    assert np.isfinite(epochs[1].loss)
    poison(monkeypatch, set(range(100)), float("nan"), "loss")
    with pytest.raises(TrainingError, match="step 11"):
        run(data, tmp_path / "never", small(on_bad_loss="skip", epochs=9))


@pytest.mark.usefixtures("without_report")
def test_frozen_batch_norms_keep_their_statistics(data: Path, tmp_path: Path) -> None:
    config = small("convmixer_768_32", freeze_batch_norm_stats=True, epochs=1)
    torch.manual_seed(config.seed)
    before = build_model(config, CLASSES)[0].state_dict()
    run(data, tmp_path / "run", config)
    after = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    same = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert same == {name for name in after if "running" in name or "num_batches" in name}


@pytest.mark.usefixtures("without_report")
def test_head_only_training_changes_only_the_head(data: Path, tmp_path: Path) -> None:
    config = small("convmixer_768_32", trainable="head", epochs=1)
    torch.manual_seed(config.seed)
    before = {name: value.clone() for name, value in build_model(config, CLASSES)[0].state_dict().items()}
    run(data, tmp_path / "run", config)
    after = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}


@pytest.mark.usefixtures("without_report")
def test_gradient_accumulation_gives_the_same_losses(data: Path, tmp_path: Path) -> None:
    one, four = (losses(run(data, tmp_path / f"{n}", small(grad_accum_steps=n))) for n in (1, 4))
    np.testing.assert_allclose(one, four, rtol=1e-5)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "does not fit in memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "does not fit in memory"),
        (torch._dynamo.exc.TorchDynamoException("no compiler\nlong story"), "torch.compile failed: no compiler"),
    ],
)
def test_a_lack_of_memory_is_reported(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Trainer, "step", fail)
    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.Module.compile", lambda self: None)
        with pytest.raises(UsageError, match=text):
            run(data, tmp_path / "run", small(compile=True))


@pytest.mark.parametrize("grad_accum_steps", [4, 1000])
def test_processes_do_equally_many_forward_passes(monkeypatch: pytest.MonkeyPatch, grad_accum_steps: int) -> None:
    """Sharded weights and synchronized batch norms would wait forever for a process that could not read some images."""
    config = small(batch_size=10, grad_accum_steps=grad_accum_steps)
    trainer = Trainer(*build_model(config, CLASSES), config, DistributedContext(), shard=False)
    trainer.context = DistributedContext(world_size=2)
    monkeypatch.setattr(DistributedContext, "all_reduce_sum", lambda self, *numbers: list(numbers))
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    trainer.model.register_forward_hook(count)
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    counts, grad_norms = [], []
    for images in (5, 4, 3, 1):  # of the five that belong to this process
        trainer.model.load_state_dict(weights)
        passes = 0
        x, labels = torch.full((images, 16, 16, 3), 99, dtype=torch.uint8), torch.zeros(images, dtype=torch.int64)
        grad_norms.append(trainer.step(Batch(x, labels, []), 0, 0.0, False, False).grad_norm)
        counts.append(passes)
    assert counts == [min(grad_accum_steps, 5)] * 4
    np.testing.assert_allclose(grad_norms, grad_norms[0], rtol=1e-4)  # equal images, whose mean is that of one
