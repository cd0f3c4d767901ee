"""Distillation."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessella.errors import UsageError

from .small_runs import epochs_of, losses, run, small


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_a_student_learns_from_its_teacher(data: Path, finished_run: Path, tmp_path: Path, mode: str) -> None:
    config = small(teacher=f"local-dir:{finished_run}", distill=mode, distill_weight=1.0, distill_temperature=2.0)
    events = run(data, tmp_path / "run", config)
    assert losses(events)[-1] < losses(events)[0]
    epochs = epochs_of(events)
    assert epochs[-1].val_top1 > 0.9  # although no label was used
    with pytest.raises(UsageError, match="has 10 classes, the data has 2"):
        run(data, tmp_path / "other", small(teacher="convmixer_256_8_ks3_p4.cifar10"))
