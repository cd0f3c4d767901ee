"""Every image is counted once, classes are matched by name, and published figures stand only beside their own set."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tessella
from tessella.data.datasets import LabelledImages, open_labelled
from tessella.data.labels import labels_for
from tessella.engine import make_plan
from tessella.errors import ImageError, UsageError, WeightsError
from tessella.evaluation import evaluator, results
from tessella.evaluation.classes import match_classes
from tessella.evaluation.evaluator import Evaluation, evaluate, measure
from tessella.evaluation.imagenet import SETS, find_published, read_real_labels, recognise
from tessella.evaluation.leakage import open_data
from tessella.evaluation.settings import EvaluationSettings
from tessella.plots import figures
from tessella.predictor import DEFAULT_MODEL, Predictor
from tessella.weights.catalogue import _accuracies
from tessella.weights.save import save_pretrained

from ..models.tiny import tiny
from ..test_builtin import SUBSET, recorded

NAMES = ("ant", "bee", "cat", "dog", "eel")
SYNSETS = labels_for("imagenet-1k").synsets


def model_of(names: Iterable[str] = NAMES) -> Any:
    names = tuple(names)
    model = tiny("mixer", num_classes=len(names))
    model.pretrained_cfg = dict(
        input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=len(names), label_names=names
    )
    outputs = Predictor(model, plan=make_plan("cpu", engine="eager")).outputs(map(picture, range(1, 31)))
    logits = np.stack([one.logits for one in outputs if not isinstance(one, ImageError)])
    with torch.no_grad():
        model.head.bias -= torch.tensor(logits.mean(0))  # all classes are predicted
    return model


def predictor_of(names: Iterable[str] = NAMES, batch_size: int = 4) -> Predictor:
    return Predictor(model_of(names), plan=make_plan("cpu", engine="eager", batch_size=batch_size))


@pytest.fixture(scope="module")
def imagenet() -> Predictor:
    """An untrained model that knows ImageNet's classes."""
    model = tiny("convmixer_relu", num_classes=1000)
    model.pretrained_cfg = dict(input_size=(3, 32, 32), num_classes=1000)
    return Predictor(model, plan=make_plan("cpu", engine="eager", batch_size=8))


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse.repeat(8, 0).repeat(8, 1))


def folder_of(root: Path, classes: Iterable[str], each: int = 6, name: str = "{}.png") -> Path:
    number = 0
    for label in classes:
        (root / label).mkdir(parents=True)
        for _ in range(each):
            number += 1
            picture(number).save(root / label / name.format(number), "PNG")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "data", NAMES)


def logits_of(predictor: Predictor, images: LabelledImages) -> np.ndarray:
    """(N,K), one image at a time."""
    model = predictor.model
    rows = []
    for i in range(len(images)):
        (output,) = Predictor(model, plan=make_plan("cpu", engine="eager")).outputs([images.read(i)])
        assert not isinstance(output, ImageError)
        rows.append(output.logits)
    return np.stack(rows)


# --- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_figures_are_those_of_the_models_answers(folder: Path, batch_size: int) -> None:
    images = open_labelled(folder)
    predictor = predictor_of(batch_size=batch_size)
    expected = logits_of(predictor, images)
    seen: list[tuple[str, int, int]] = []
    row = measure(predictor, images, progress=lambda *what: seen.append(what))
    assert row.metrics
    assert row.answers is not None
    assert row.metrics.top1 == (expected.argmax(1) == images.labels).mean()
    assert 0 < row.metrics.top1 < 1
    assert len(set(row.answers.predicted.tolist())) > 2
    assert row.metrics.count == row.images == 30
    assert row.answers.index.tolist() == list(range(30))
    assert row.answers.predicted.tolist() == expected.argmax(1).tolist()
    loss = torch.nn.functional.cross_entropy(torch.tensor(expected), torch.tensor(images.labels))
    assert row.metrics.loss == pytest.approx(loss.item(), abs=1e-5)
    assert seen == [(predictor.name, i, 30) for i in range(1, 31)]
    assert row.images_per_second
    assert row.dataset == ""
    assert row.published is None


def test_images_that_cannot_be_read_are_named_and_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "CHUNK", 5)
    predictor = predictor_of()
    whole = open_labelled(folder)
    expected = (logits_of(predictor, whole).argmax(1) == whole.labels)[3:]
    for number, content in ((1, b""), (2, b"no image"), (3, b"no image")):
        (folder / "ant" / f"{number}.png").write_bytes(content)
    row = measure(predictor, open_labelled(folder))
    assert row.metrics
    assert [(one.key, one.code) for one in row.failed] == [
        ("ant/1.png", "empty"), ("ant/2.png", "unsupported_format"), ("ant/3.png", "unsupported_format"),
    ]  # fmt: skip
    assert row.metrics.errors == {"empty": 1, "unsupported_format": 2}
    assert row.metrics.count + len(row.failed) == row.images == len(whole) == 30
    assert row.metrics.top1 == expected.mean()  # left out
    assert row.metrics.top1_of_all == pytest.approx(expected.sum() / 30)  # counted as wrong
    told = "\n".join(results.remarks([row]))
    assert "3 of 30 images could not be read (1 empty, 2 unsupported_format)" in told
    assert f"top-1 is {100 * expected.sum() / 30:.2f} %" in told
    assert "ant/1.png: empty" in told


def test_nothing_readable_is_a_coded_error(folder: Path) -> None:
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(ImageError, match="none of the 30 images") as caught:
        measure(predictor_of(), open_labelled(folder))
    assert caught.value.code == "unreadable"
    assert "ant/1.png" in caught.value.hint


def test_answers_that_are_not_finite_are_a_coded_error(folder: Path) -> None:
    model = model_of()
    with torch.no_grad():
        model.head.bias[0] = float("inf")
    with pytest.raises(WeightsError, match="NaN or infinity") as caught:
        measure(Predictor(model, plan=make_plan("cpu", engine="eager")), open_labelled(folder))
    assert caught.value.code == "non_finite"


# --- classes ----------------------------------------------------------------------------------------------------------


def test_the_same_names_in_another_order_are_mapped(folder: Path) -> None:
    images = open_labelled(folder)
    ordered, shuffled = predictor_of(), predictor_of(NAMES[::-1])  # the same answers under other names
    predicted = logits_of(ordered, images).argmax(1)
    names = np.array(NAMES)
    row = measure(shuffled, images)
    assert row.metrics
    assert row.metrics.top1 == (names[::-1][predicted] == names[images.labels]).mean()
    assert row.metrics.classes == NAMES[::-1]
    assert row.metrics.confusion.sum(1).tolist() == [6] * 5


def test_fewer_names_count_what_they_are_not_as_wrong(tmp_path: Path) -> None:
    images = open_labelled(folder_of(tmp_path, ("cat", "dog"), each=15))
    predictor = predictor_of()
    logits = logits_of(predictor, images)
    truth = images.labels + 2
    row = measure(predictor, images)
    assert row.metrics
    assert row.metrics.top1 == (logits.argmax(1) == truth).mean()
    assert len(row.metrics.classes) == 5
    assert row.classes == "2 of the model's 5, matched by name; predictions of other classes count as wrong"
    row = measure(predictor, images, restrict=True)
    assert row.metrics
    assert row.metrics.top1 == (logits[:, 2:4].argmax(1) == images.labels).mean()
    assert row.metrics.classes == ("cat", "dog")


def test_synsets_are_matched_and_others_cannot_be_predicted(tmp_path: Path, imagenet: Predictor) -> None:
    wanted = [SYNSETS[i] for i in (980, 7, 300)]
    images = open_labelled(folder_of(tmp_path, wanted))
    columns = [7, 300, 980]
    assert images.classes == tuple(SYNSETS[i] for i in columns)  # ids are in the order of the indices
    logits = logits_of(imagenet, images)
    row = measure(imagenet, images)
    assert row.metrics
    assert row.metrics.top1 == (logits[:, columns].argmax(1) == images.labels).mean()
    assert row.metrics.top1 > (logits.argmax(1) == np.array(columns)[images.labels]).mean()
    assert row.metrics.classes == tuple(imagenet.labels[i] for i in columns)
    assert row.metrics.top5 is None
    assert row.classes == "3 of the model's 1,000, matched by WordNet id; only these can be predicted"
    all_of_them = measure(imagenet, images, restrict=False).metrics
    assert all_of_them
    assert all_of_them.top1 == (logits.argmax(1) == np.array(columns)[images.labels]).mean()
    assert len(all_of_them.classes) == 1000


def test_indices_as_folder_names_are_numbers(imagenet: Predictor) -> None:
    names = sorted(map(str, range(1000)))  # 0, 1, 10, 100, ...
    match = match_classes(names, imagenet)
    assert match.positions.tolist() == [int(name) for name in names]
    assert match.columns.tolist() == list(range(1000))
    assert match.naming == "indices"


def test_a_model_that_calls_its_classes_by_synsets() -> None:
    predictor = predictor_of(SYNSETS[10:15])
    match = match_classes([SYNSETS[13], SYNSETS[11]], predictor)
    assert match.columns.tolist() == [1, 3]
    assert match.positions.tolist() == [1, 0]


def test_names_that_two_classes_have_say_nothing(imagenet: Predictor) -> None:
    with pytest.raises(UsageError, match="'crane'"):
        match_classes(["crane", imagenet.labels[0]], imagenet)
    assert match_classes(imagenet.labels, imagenet).positions.tolist() == list(range(1000))  # all of them, in order


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (
            ["ant", "yak", "zebra"],
            "2 of the 3 classes in the data, such as 'yak', 'zebra'; its 5 classes include 'ant'",
        ),
        (["0", "1"], "'0', '1'"),  # not all of its indices
        (list(SYNSETS[:6]), "6 of the 6 classes"),
    ],
)
def test_a_class_that_the_model_lacks_is_told_with_both_sides(classes: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        match_classes(classes, predictor_of())
    assert caught.value.code == "bad_argument"
    assert says in caught.value.message
    assert "'eel'" in caught.value.message or ", ..." in caught.value.message


def test_a_model_without_classifier_is_refused() -> None:
    model = tiny("mixer", num_classes=0)
    model.pretrained_cfg = dict(input_size=(3, 32, 32))
    with pytest.raises(UsageError, match="no classifier"):
        match_classes(NAMES, Predictor(model, plan=make_plan("cpu", engine="eager")))


# --- ImageNet's sets --------------------------------------------------------------------------------------------------


class FakeImages:
    """Of a size that no test can have on disk."""

    def __init__(self, classes: Iterable[str], count: int, origin: str = "data", key: str = "n/1.JPEG"):
        self.classes, self.count, self.origin, self.name = tuple(classes), count, origin, key

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return self.name


@pytest.mark.parametrize(
    ("images", "name"),
    [
        (FakeImages(SYNSETS, 50_000, key="n01440764/ILSVRC2012_val_00000293.JPEG"), "imagenet"),
        (FakeImages(SYNSETS, 50_000, key="n01440764/n01440764_10026.JPEG"), ""),  # 50 a class of the training images
        (FakeImages(SYNSETS, 49_999, key="n01440764/ILSVRC2012_val_00000293.JPEG"), ""),
        (FakeImages(SYNSETS, 50_889), "sketch"),
        (FakeImages(SYNSETS[:200], 30_000), "imagenet-r"),
        (FakeImages(SYNSETS[:200], 7_500), "imagenet-a"),
        (FakeImages(SYNSETS[:199], 7_500), ""),
        (
            FakeImages(map(str, range(1000)), 10_000, "imagenetv2-matched-frequency-format-val"),
            "imagenetv2-matched-frequency",
        ),
        (FakeImages(map(str, range(1000)), 10_000, "imagenetv2-top-images-format-val"), ""),
        (FakeImages(SYNSETS, 0), ""),
    ],
)
def test_sets_are_recognised_by_what_they_hold(images: Any, name: str, imagenet: Predictor) -> None:
    assert recognise(images, match_classes(images.classes, imagenet)) == name


def test_published_figures_are_of_the_set_the_weights_and_the_size() -> None:
    predictor = predictor_of()

    def of(name: str, dataset: str, size: int = 224) -> Any:
        predictor.name = name
        predictor.spec = type(predictor.spec)(height=size, width=size)
        return find_published(predictor, dataset)

    assert of("convmixer_768_32.in1k", "imagenet").top1 == 80.158
    assert of("convmixer_768_32", "imagenet-r").top1 == 43.26
    assert of("convmixer_768_32.in1k", "imagenet", 256) is None
    assert of("convmixer_768_32.in1k", "") is None
    assert of("local-dir:convmixer_768_32", "imagenet") is None
    assert of(DEFAULT_MODEL, "imagenet") is None


def test_the_sets_are_those_of_the_table() -> None:
    measured_here = {"cifar10"}
    assert set(SETS) | measured_here == {name for row in _accuracies().values() for name in row}


def real_labels(tmp_path: Path, labels: dict[int, list[int]]) -> Path:
    path = tmp_path / "real.json"
    path.write_text(json.dumps([labels.get(i, [999]) for i in range(1, 50_001)]))
    return path


def test_any_real_label_is_right_and_images_without_one_are_left_out(tmp_path: Path, imagenet: Predictor) -> None:
    images = open_labelled(folder_of(tmp_path / "val", SYNSETS[:2], each=3, name="ILSVRC2012_val_{:08}.JPEG"))
    logits = logits_of(imagenet, images)
    order = np.argsort(-logits, 1)
    labels = {
        1: [int(order[0, 0]), 5], 2: [int(order[1, 0])], 3: [], 4: [int(order[3, 3]), int(order[3, 700])],
        5: [int(order[4, 900]), int(order[4, 901])], 6: [],
    }  # fmt: skip
    real = read_real_labels(real_labels(tmp_path, labels))
    row = measure(imagenet, images, real=real)
    assert row.metrics
    assert row.answers is not None
    assert row.answers.index.tolist() == [0, 1, 3, 4]
    assert row.answers.rank.tolist() == [0, 0, 3, 900]  # of the label that the model ranks best
    assert row.metrics.top1 == 0.5
    assert row.metrics.top5 == 0.75
    assert (row.unlabelled, row.images) == (2, 6)
    assert len(row.metrics.classes) == 1000
    assert row.dataset == ""  # it is not the whole set
    assert measure(imagenet, images, real=real, dataset="imagenet-real").dataset == "imagenet-real"
    assert "2 images have no ReaL label" in "\n".join(results.remarks([row]))


def test_real_labels_need_the_validation_sets_names(folder: Path, tmp_path: Path, imagenet: Predictor) -> None:
    with pytest.raises(UsageError, match=r"ant/1\.png"):
        measure(imagenet, open_labelled(folder), real=read_real_labels(real_labels(tmp_path, {})))


@pytest.mark.parametrize("content", ["{}", "[[1]]", "[[1000]]", "no json", None, json.dumps([["1"]] * 50_000)])
def test_other_files_are_no_real_labels(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "real.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=r"real\.json") as caught:
        read_real_labels(path)
    assert caught.value.code == "bad_argument"


# --- several models ---------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> str:
    return f"local-dir:{save_pretrained(model_of(), tmp_path / 'saved')}"


def run(data: Any, models: Any, **options: Any) -> list[Evaluation]:
    settings = dict(engine="eager", precision="float32", device="cpu") | options
    return list(evaluate(data, models, EvaluationSettings(**settings)))


def test_each_model_engine_and_precision_is_a_row(folder: Path, saved: str) -> None:
    loaded = tessella.load(saved, device="cpu", engine="eager", precision="float32")
    rows = run(folder, [saved, loaded], engine=["eager", "rewritten"])
    assert [(row.engine, row.precision) for row in rows] == [
        ("eager", "float32"), ("rewritten", "float32"), ("eager", "float32"),
    ]  # fmt: skip
    measured = [row.metrics for row in rows if row.metrics]
    assert len(measured) == 3
    assert len({one.top1 for one in measured}) == 1
    assert (measured[0].confusion.sum(0) > 0).sum() > 2
    assert measured[0].loss == pytest.approx(measured[1].loss, abs=1e-4)
    assert all(len(results.cells(row)) == len(results.HEADER) for row in rows)


def test_a_lossy_precision_is_shown_as_what_was_used(folder: Path, saved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tessella.engine.gate import BOUNDS, Bounds

    monkeypatch.setitem(BOUNDS, "bfloat16", Bounds(0.0, 0.0))
    (row,) = run(folder, [saved], engine="rewritten", precision="bfloat16")
    assert (row.precision, row.note) == ("bfloat16", "")
    monkeypatch.setitem(BOUNDS, "bfloat16", Bounds(1.0, 1.1))
    exact, row = run(folder, [saved], engine="rewritten", precision=["float32", "bfloat16"])
    assert exact.note == ""
    assert row.precision == "float32"
    assert row.note.startswith("not bfloat16: ")


def test_a_model_that_fails_is_a_row_and_the_others_go_on(folder: Path, saved: str, tmp_path: Path) -> None:
    other = f"local-dir:{save_pretrained(model_of(('yak', 'zebra')), tmp_path / 'other')}"
    rows = run(folder, [other, f"local-dir:{tmp_path / 'absent'}", saved])
    assert [row.status for row in rows] == ["bad_argument", rows[1].status, "ok"]
    assert rows[1].status != "ok"
    assert "'ant'" in rows[0].note
    assert rows[2].metrics
    assert all(len(results.cells(row)) == len(results.HEADER) for row in rows)
    with pytest.raises(UsageError, match="does not have 5"):
        run(folder, [other])


def test_what_cannot_be_asked_is_refused_before_a_model_is_loaded(
    folder: Path, saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    wrong: list[tuple[Any, Any, dict[str, Any], str]] = [
        (folder, ["convmixer_768_33"], {}, "unknown_model"),
        (folder, [], {}, "bad_argument"),
        (folder, [saved], dict(dataset="imagenet-q"), "bad_argument"),
        (folder, [saved, saved], dict(checkpoint_path="x"), "bad_argument"),
        (folder, [saved], dict(real_labels=tmp_path / "none.json"), "bad_argument"),
        (tmp_path / "absent", [saved], {}, "not_found"),
    ]
    for data, names, options, code in wrong:
        with pytest.raises(UsageError) as caught:
            evaluate(data, names, EvaluationSettings(**options))
        assert caught.value.code == code


def test_the_validation_split_is_taken_where_there_is_one(tmp_path: Path, folder: Path) -> None:
    folder_of(tmp_path / "both" / "train", NAMES, each=2)
    folder_of(tmp_path / "both" / "val", NAMES, each=1)
    assert len(open_data(tmp_path / "both")) == 5
    assert len(open_data(tmp_path / "both", "train")) == 10
    assert len(open_data(tmp_path / "both", "all")) == 15
    assert len(open_data(folder)) == 30


# --- the result -------------------------------------------------------------------------------------------------------


def test_the_tables_say_the_same(folder: Path, saved: str) -> None:
    (folder / "ant" / "1.png").write_bytes(b"")
    rows = [*run(folder, [saved]), Evaluation(model="m", status="no_weights", note="none, | at all", engine="auto")]
    (good, bad) = csv.DictReader(io.StringIO(results.csv_bytes(rows).decode()))
    assert tuple(good) == results.COLUMNS == tuple(results.as_dict(rows[0]))
    found = rows[0].metrics
    assert found
    assert float(good["top1"]) == found.top1
    assert (good["images"], good["measured"], good["unread"]) == ("30", "29", "1")
    assert good["top5"] == ""
    assert "engine: eager" in good["conditions"]
    assert (bad["status"], bad["top1"], bad["note"]) == ("no_weights", "", "none, | at all")
    assert json.loads(json.dumps(results.as_dict(rows[0]), allow_nan=False))["macro_f1"] == found.f1
    text = results.markdown(rows)
    assert f"| {100 * found.top1:.2f} |" in text
    assert "29 of 30" in text
    assert "none, \\| at all" in text
    assert "1 of 30 images could not be read" in text


def test_published_figures_stand_beside_the_measured() -> None:
    rows = [fake_row("a.x", 0.8, 100.0), fake_row("b.x", 0.7, 50.0)]
    assert results.cells(rows[0])[6] == "80.16 / 95.07"
    assert results.as_dict(rows[0])["published_top1"] == 0.80158
    assert "Published: top-1 / top-5 on imagenet" in results.markdown(rows)


def fake_row(name: str, top1: float, rate: float) -> Evaluation:
    from tessella.evaluation.metrics import metrics
    from tessella.weights.catalogue import Accuracy

    right = np.arange(10) < 10 * top1
    found = metrics(np.eye(2)[right.astype(int)], np.ones(10, int), ("a", "b"))
    conditions = dict.fromkeys(("transform", "decode policy", "device", "threads", "hardware", "data"), "x")
    return Evaluation(model=name, metrics=found, dataset="imagenet", published=Accuracy(80.158, 95.07, 224),
                      engine="eager", precision="float32", seconds=10 / rate, conditions=conditions)  # fmt: skip


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_picture_has_a_point_for_each_model(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    kept: list[Any] = []
    whole = figures.render

    def keep(figure: Any, suffix: str) -> bytes:
        kept.append(figure)
        return whole(figure, suffix)

    monkeypatch.setattr(results, "render", keep)
    data = results.draw([fake_row("a.x", 0.8, 100.0), fake_row("b.x", 0.7, 50.0), Evaluation(model="failed")], suffix)
    assert data.startswith(b"\x89PNG") if suffix == ".png" else b"<svg" in data
    panel = kept[0].axes[0]
    assert [text.get_text() for text in panel.texts] == ["a", "b"]
    measured = next(points for points in panel.collections if len(points.get_offsets()) == 2)
    np.testing.assert_allclose(measured.get_offsets(), [[100, 80], [50, 70]])
    with pytest.raises(UsageError, match="nothing to draw"):
        results.draw([Evaluation(model="failed")])


def test_the_folder_has_a_table_and_a_report_of_each(tmp_path: Path, folder: Path, saved: str) -> None:
    pytest.importorskip("matplotlib")
    images = open_data(folder)
    rows = run(images, [saved], engine=["eager", "rewritten"])
    page = results.write_results(tmp_path / "out", rows, command="tessella evaluate data", images=images)
    text = page.read_text()
    reports = sorted(path.relative_to(page.parent).as_posix() for path in page.parent.glob("*/report.md"))
    assert len(reports) == 2
    assert all(f"]({name})" in text for name in reports)
    assert "tessella evaluate data" in text
    assert {path.name for path in page.parent.iterdir() if path.is_file()} == {
        "evaluation.md", "evaluation.csv", "evaluation.json", "evaluation.png",
    }  # fmt: skip
    assert (page.parent / reports[0]).with_name("mistakes.png").exists()
    assert [row["engine"] for row in json.loads((page.parent / "evaluation.json").read_text())["rows"]] == [
        "eager", "rewritten",
    ]  # fmt: skip
    page = results.write_results(tmp_path / "single", rows[:1], command="tessella evaluate data", images=images)
    assert "](report.md)" in page.read_text()
    assert "fingerprint" in (page.parent / "report.md").read_text()


# --- the built-in model -----------------------------------------------------------------------------------------------


def test_the_built_in_model_on_a_thousand_images(shared_data: Path) -> None:
    pytest.importorskip("pyarrow")
    images = open_labelled(shared_data / "cifar10-test.parquet")
    expected = recorded()["models"][DEFAULT_MODEL]
    subset = images.subset(range(SUBSET))
    settings = EvaluationSettings(device="cpu", precision="float32", batch_size=100)
    (row,) = evaluate(subset, [DEFAULT_MODEL], settings)
    assert row.metrics
    assert row.answers is not None
    assert row.images == row.metrics.count == SUBSET
    assert row.metrics.top1 == pytest.approx(expected["subset_top1"], abs=1e-3)
    assert row.metrics.classes == tessella.load().labels
    np.testing.assert_allclose(row.answers.confidence, expected["probability"], atol=1e-3)
    assert row.metrics.ece < 0.1
    assert row.metrics.top5
    assert row.metrics.top5 > 0.98
    assert row.published is None
