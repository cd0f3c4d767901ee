"""Teachers that are models of this package: their classes and their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tessella import create_model
from tessella.data.labels import labels_for
from tessella.errors import UsageError
from tessella.training.teacher import build_teacher, class_order
from tessella.weights.save import save_pretrained

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


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("teacher_epochs", [0, 1])
def test_a_teacher_with_the_classes_in_another_order_is_learned_by_name(
    data: Path, finished_run: Path, tmp_path: Path, teacher_epochs: int
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("dark\nbright\n")  # its first class is "bright", so it now is wrong about every image
    settings: dict[str, Any] = dict(
        teacher=f"local-dir:{finished_run}", teacher_epochs=teacher_epochs, distill_weight=0.95
    )
    events = run(data, tmp_path / "run", small(**settings, distill="hard", teacher_labels=str(names)))
    assert epochs_of(events)[-1].val_top1 < 0.1


def test_a_teacher_with_other_classes_is_refused(data: Path, finished_run: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("bright\ncat\n")
    config = small(teacher=f"local-dir:{finished_run}", teacher_labels=str(names))
    with pytest.raises(UsageError, match="other classes than the data, such as 'bright'; the data") as caught:
        run(data, tmp_path / "run", config)
    assert "distill_weight to 1" in str(caught.value.hint)
    assert not (tmp_path / "run").exists()


def test_classes_are_compared_by_name_unless_one_side_has_only_indices(finished_run: Path) -> None:
    config = small(teacher=f"local-dir:{finished_run}")
    teacher = build_teacher(config, torch.device("cpu"))
    imagenet = labels_for("imagenet-1k")
    for names, classes, order in (
        ((), ("a", "b"), None),
        (("a", "b"), ("a", "b"), None),
        (("b", "c", "a"), ("a", "b", "c"), (2, 0, 1)),
        (("e\u0301", "b"), ("b", "\u00e9"), (1, 0)),
        (("b", "a"), ("0", "1"), None),
        (("1", "0"), ("0", "1"), (1, 0)),
        (imagenet.names, imagenet.synsets, None),
    ):
        teacher.class_names = names
        assert class_order(config, teacher, classes) == order
    for names, classes in ((("a", "a"), ("a", "b")), (("a", "b"), ("a", "c")), (imagenet.names, imagenet.names[::-1])):
        teacher.class_names = names
        with pytest.raises(UsageError, match="has other classes than the data"):
            class_order(config, teacher, classes)


@pytest.mark.usefixtures("without_report")
def test_a_run_is_not_resumed_with_other_weights_of_its_teacher(data: Path, finished_run: Path, tmp_path: Path) -> None:
    teacher, out = tmp_path / "teacher", tmp_path / "run"
    model = create_model(f"local-dir:{finished_run}", pretrained=True)
    save_pretrained(model, teacher)
    config = small(teacher=f"local-dir:{teacher}", epochs=1)
    run(data, out, config)
    record = json.loads((out / "train.json").read_text())
    assert set(record) == {"config", "data", "val", "teacher"}
    del record["teacher"]
    (out / "train.json").write_text(json.dumps(record))  # as earlier versions wrote it
    run(data, out, config)
    assert "teacher" in json.loads((out / "train.json").read_text())
    classifier = model.get_classifier()
    assert isinstance(classifier, torch.nn.Linear)
    torch.nn.init.zeros_(classifier.bias)
    save_pretrained(model, teacher)
    with pytest.raises(UsageError, match="the teacher's files changed") as caught:
        run(data, out, config)
    assert caught.value.code == "changed_run"
