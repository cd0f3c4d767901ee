"""Whole comparisons of small models: on labeled and unlabeled images and runs, interrupted, and with bad images."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessella import bulk
from tessella.bulk import RunSettings
from tessella.bulk.events import RunEvent, ShardFinished
from tessella.bulk.run_folder import finished_shards
from tessella.comparison import Comparison, ComparisonSettings, compare, outputs, write_comparison
from tessella.comparison.paired import paired_difference
from tessella.comparison.results import p_text, sentences, verdict
from tessella.comparison.subjects import ComparedModel, parameters_of
from tessella.data.datasets import LabelledImages, open_labelled, open_split
from tessella.data.source import Source
from tessella.engine import make_plan
from tessella.errors import ImageError, TessellaError, UsageError
from tessella.evaluation.leakage import write_image_record
from tessella.predictor import Output, Predictor, load
from tessella.search import Alignment
from tessella.storage import folder_lock
from tessella.weights.save import save_pretrained

from ..calibration.made import calibration_for
from ..data.test_isolated import FaultySource
from ..evaluation.small_data import NAMES, folder_of, model_of, picture
from ..models.tiny import tiny

QUIET = ComparisonSettings(speed=False)


def predictor_of(noise: float = 0.0, seed: int = 0, names: Any = NAMES) -> Predictor:
    """Return a small model; noise: of its weights, relative to their spread."""
    import torch

    model = model_of(names)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and noise:
                parameter += noise * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return Predictor(model, plan=make_plan("cpu", engine="eager", batch_size=4), name=f"small {noise:g}")


BAD = (25, 37)  # positions of the images that cannot be read
OLD, NEW = predictor_of(), predictor_of(0.3)


def answers(predictor: Predictor, data: Path) -> dict[str, tuple[str, float]]:
    """Return the answer and its probability by key, computed one by one."""
    images = open_labelled(data)
    found = {}
    for i in range(len(images)):
        (record,) = predictor.records([images.read(i)], top=1) if images.sizes[i] > 10 else [None]
        if record is not None and record.status == "ok":
            found[images.key(i)] = (record.top[0].label, record.top[0].probability)
    return found


def code_of(*arguments: Any, **options: Any) -> str:
    with pytest.raises(TessellaError) as caught:
        compare(*arguments, **options)
    return caught.value.code


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 60 labeled images, two of which cannot be read."""
    folder = folder_of(tmp_path_factory.mktemp("compare") / "data", NAMES, 12)
    (folder / "cat" / "26.png").write_bytes(b"no image, but longer than ten bytes")
    (folder / "dog" / "38.png").write_bytes(b"")
    images = open_labelled(folder)
    assert [images.key(i) for i in BAD] == ["cat/26.png", "dog/38.png"]
    return folder


@pytest.fixture(scope="module")
def result(data: Path) -> Comparison:
    return compare(OLD, NEW, data, QUIET)


def test_figures_are_those_of_answers_one_by_one(result: Comparison, data: Path) -> None:
    old, new = answers(OLD, data), answers(NEW, data)
    assert (result.images, result.compared) == (60, 58)
    assert result.old.errors == result.new.errors == {"empty": 1, "unsupported_format": 1}
    true = {key: key.split("/")[0] for key in old}
    counts = Counter((old[key][0] == true[key], new[key][0] == true[key]) for key in old)
    assert result.accuracy is not None
    assert (result.accuracy.gained, result.accuracy.lost) == (counts[False, True], counts[True, False])
    assert result.accuracy.old == pytest.approx((counts[True, True] + counts[True, False]) / 58)
    differing = {key for key in old if old[key][0] != new[key][0]}
    assert {change.key for change in result.changed} == differing
    assert 3 < len(differing) < 55
    assert result.agreement is not None
    assert result.agreement.share == pytest.approx(1 - len(differing) / 58)
    for change in result.changed:
        assert (change.old, change.new) == (old[change.key][0], new[change.key][0])
        assert change.old_probability == pytest.approx(old[change.key][1], abs=1e-5)
        assert change.new_probability == pytest.approx(new[change.key][1], abs=1e-5)
        assert change.label == true[change.key]


def test_total_variation_is_that_of_all_probabilities(result: Comparison, data: Path) -> None:
    images = open_labelled(data)
    readable = [i for i in range(60) if i not in BAD]
    old, new = (model.predict([images.read(i) for i in readable]).probabilities for model in (OLD, NEW))
    assert result.agreement is not None
    assert result.agreement.judged == 58
    assert result.agreement.total_variation == pytest.approx(np.abs(old - new).sum(1).mean() / 2, abs=1e-5)


def test_a_model_is_the_same_as_itself(data: Path) -> None:
    result = compare(OLD, OLD, data, QUIET)
    assert result.changed == ()
    assert result.agreement is not None
    assert (result.agreement.share, result.agreement.total_variation) == (1, 0)
    assert result.neighbors is not None
    assert result.neighbors.share == 1
    assert verdict(result).startswith("all answers are the same; on other images, the difference may be up to +")
    assert any("they are the same model" in note for note in result.notes)


def test_unlabeled_images_are_compared_without_accuracy(tmp_path: Path) -> None:
    for i in range(40):
        picture(i).save(tmp_path / f"{i}.png")
    result = compare(OLD, NEW, tmp_path, QUIET)
    assert result.accuracy is None
    assert result.agreement is not None
    assert result.neighbors is not None
    assert {change.change for change in result.changed} == {"changed"}
    assert {change.label for change in result.changed} == {""}
    assert verdict(result).startswith("the models differ: ")
    assert any(note.startswith("the images are compared without labels") for note in result.notes)


def test_models_with_other_classes_are_compared_by_embeddings(data: Path) -> None:
    result = compare(OLD, predictor_of(names="uvwxyz"), data, QUIET)
    assert (result.accuracy, result.agreement, result.changed) == (None, None, ())
    assert result.neighbors is not None
    assert any(note.startswith("labels are not used: ") for note in result.notes)
    assert verdict(result).startswith("the embeddings are almost the same: 100.0 % of the 10 nearest images")


def test_statistics_of_batch_norms_are_no_parameters() -> None:
    model = tiny("convmixer", num_classes=5)
    predictor = Predictor(model, plan=make_plan("cpu", engine="eager", batch_size=4))
    trained = sum(parameter.numel() for parameter in model.parameters())
    assert sum(tensor.numel() for tensor in model.state_dict().values()) > trained
    assert parameters_of(ComparedModel.of_predictor(predictor)) == trained


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of the same images; the second in another order, under other names."""
    folder = tmp_path_factory.mktemp("runs")
    copy = folder / "copy"
    for number, path in enumerate(sorted(data.rglob("*.png"), reverse=True)):
        (copy / f"{number % 3}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy / f"{number % 3}" / f"image {number}.png")
    settings = RunSettings(shard_rows=16, dtype="float32")
    bulk.run(str(data), folder / "old", OLD, settings)
    bulk.run(str(copy), folder / "new", NEW, settings)
    return folder / "old", folder / "new"


def test_runs_give_the_figures_of_their_models(runs: tuple[Path, Path], data: Path, result: Comparison) -> None:
    """Rows belong together by the bytes of the images, not by their names or places."""
    by_rows = compare(*runs, data, QUIET)
    assert by_rows.accuracy == result.accuracy
    assert by_rows.agreement is not None
    assert result.agreement is not None
    assert by_rows.agreement.share == result.agreement.share
    assert by_rows.agreement.total_variation is None  # a run has the five most probable classes only
    assert by_rows.neighbors == result.neighbors
    assert {change.key for change in by_rows.changed} == {change.key for change in result.changed}
    assert by_rows.compared == 58


def test_images_that_the_model_of_a_run_was_trained_on_are_left_out(data: Path, tmp_path: Path) -> None:
    folder = save_pretrained(model_of(), tmp_path / "model")
    train, held_out = open_split(data, val_fraction=0.5)
    write_image_record(folder, train, held_out)
    model = load(f"local-dir:{folder}", device="cpu", engine="eager", precision="float32")
    bulk.run(str(data), tmp_path / "run", model, RunSettings(dtype="float32"))
    by_model, by_rows = (compare(old, NEW, data, QUIET) for old in (model, tmp_path / "run"))
    assert by_model.images == by_rows.images == len(held_out)
    assert by_rows.accuracy == by_model.accuracy
    assert any(f"that {folder} held out" in note for note in by_rows.notes)


def test_runs_alone_are_compared_without_labels(runs: tuple[Path, Path], result: Comparison) -> None:
    by_rows = compare(*runs, settings=QUIET)
    assert by_rows.accuracy is None
    assert (by_rows.images, by_rows.compared) == (60, 58)
    assert len(by_rows.changed) == len(result.changed)
    assert by_rows.neighbors == result.neighbors
    assert by_rows.old.errors == {"empty": 1, "unsupported_format": 1}


def test_a_run_and_a_model(runs: tuple[Path, Path], result: Comparison) -> None:
    """The model is run on the inputs of the run."""
    mixed = compare(runs[0], NEW, settings=QUIET)
    assert len(mixed.changed) == len(result.changed)
    assert mixed.neighbors == result.neighbors
    assert mixed.old.run == str(runs[0])
    assert mixed.new.run == ""


def test_a_model_whose_results_a_run_has_is_not_run_again(
    runs: tuple[Path, Path], result: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    original = Predictor.decoded_outputs

    def record(self: Predictor, decoded: Iterable[Any], **options: Any) -> Iterator[Any]:
        ran.append(self.name)
        return original(self, decoded, **options)

    monkeypatch.setattr(Predictor, "decoded_outputs", record)
    again = compare(OLD, NEW, runs[0], QUIET)
    assert ran == [NEW.name]
    assert len(again.changed) == len(result.changed)


def test_a_model_is_run_if_a_run_lacks_some_of_its_results(data: Path, tmp_path: Path, result: Comparison) -> None:
    bulk.run(str(data), tmp_path / "embeddings", OLD, RunSettings(dtype="float32", top=0))
    start_run(data, tmp_path / "unfinished")
    for name in ("embeddings", "unfinished"):
        complete = compare(OLD, NEW, tmp_path / name, QUIET)
        assert complete.compared == 58
        assert complete.agreement == result.agreement
        assert len(complete.changed) == len(result.changed)
    only = compare(tmp_path / "embeddings", NEW, data, QUIET)
    assert only.agreement is None
    assert only.neighbors == result.neighbors
    assert f"the run {tmp_path / 'embeddings'} has no classes, so only embeddings are compared" in only.notes


def test_a_run_of_other_images_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    for i in range(500, 504):
        picture(i).save(tmp_path / f"{i}.png")
    assert code_of(runs[0], NEW, tmp_path, QUIET) == "bad_argument"
    assert code_of(OLD, NEW, settings=QUIET) == "bad_argument"  # no images
    assert code_of(*runs, settings=ComparisonSettings(split="val")) == "bad_argument"
    assert code_of(OLD, NEW, tmp_path / "missing") == "not_found"
    assert code_of(tmp_path, NEW, tmp_path, QUIET) == "not_found"  # a folder without a run
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "0.png").write_bytes(b"no image")
    (tmp_path / "bad" / "1.png").write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        compare(OLD, NEW, tmp_path / "bad", QUIET)
    codes = "1 empty, 1 unsupported_format"
    assert caught.value.code == "unreadable"
    assert caught.value.message.endswith(f"a result of both models (old: {codes}; new: {codes})")


def test_probabilities_are_calibrated_like_those_of_a_run(data: Path, tmp_path: Path) -> None:
    calibrated = OLD.with_calibration(calibration_for(OLD))
    bulk.run(str(data), tmp_path / "run", calibrated, RunSettings(dtype="float32"))
    plain = {change.key: change.old_probability for change in compare(OLD, NEW, data, QUIET, out=tmp_path).changed}
    by_model = compare(calibrated, NEW, data, QUIET, out=tmp_path)  # the plain outputs of the same model are not used
    by_rows = compare(tmp_path / "run", NEW, data, QUIET)
    expected = {change.key: change.old_probability for change in by_rows.changed}
    assert len(expected) > 3
    assert {change.key: change.old_probability for change in by_model.changed} == pytest.approx(expected, abs=1e-5)
    assert plain.keys() == expected.keys()
    assert any(abs(plain[key] - expected[key]) > 0.02 for key in expected)


# --- interruptions and faults -----------------------------------------------------------------------------------------


def test_an_interrupted_comparison_resumes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "PART_IMAGES", 8)
    complete = compare(OLD, NEW, data, QUIET)
    seen: list[tuple[str, int]] = []

    def interrupt(label: str, done: int, total: int) -> None:
        seen.append((label, done))
        if label.startswith("new") and done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(OLD, NEW, data, QUIET, out=tmp_path, progress=interrupt)
    assert len(list((tmp_path / "old").iterdir())) == 8
    assert len(list((tmp_path / "new").iterdir())) == 3  # of 30 images, 24 are in complete parts
    seen.clear()
    resumed = compare(OLD, NEW, data, QUIET, out=tmp_path, progress=lambda *event: seen.append(event[:2]))
    assert seen == [(f"new: {NEW.name}", i) for i in range(25, 61)]
    assert resumed == complete
    # a damaged part is computed again, and so is everything for other images or another model
    (tmp_path / "old" / "part-00000002.npz").write_bytes(b"damaged")
    seen.clear()
    assert compare(OLD, NEW, data, QUIET, out=tmp_path, progress=lambda *event: seen.append(event[:2])) == complete
    assert len(seen) == 8
    seen.clear()
    compare(NEW, NEW, data, QUIET, out=tmp_path, progress=lambda *event: seen.append(event[:2]))
    assert Counter(label[:3] for label, _ in seen) == {"old": 60}


def test_outputs_of_files_that_changed_are_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image is replaced by one of the same name and size, and later an unreadable one is repaired."""
    monkeypatch.setattr(outputs, "PART_IMAGES", 8)
    for i in range(24):
        path = tmp_path / "data" / NAMES[i % 2] / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path)
    broken = tmp_path / "data" / NAMES[1] / "23.bmp"
    whole = broken.read_bytes()
    broken.write_bytes(bytes(len(whole)))
    os.utime(broken, ns=(0, 5))
    seen: list[str] = []

    def again() -> Comparison:
        seen.clear()
        kept = compare(OLD, NEW, tmp_path / "data", QUIET, out=tmp_path / "out", progress=lambda *e: seen.append(e[0]))
        assert kept == compare(OLD, NEW, tmp_path / "data", QUIET)
        return kept

    again()
    assert len(seen) == 48
    picture(50).save(tmp_path / "data" / NAMES[0] / "0.bmp")
    os.utime(tmp_path / "data" / NAMES[0] / "0.bmp", ns=(0, 5))
    assert again().compared == 23
    assert len(seen) == 16
    broken.write_bytes(whole)
    os.utime(broken, ns=(0, 5))
    assert again().compared == 24
    assert len(seen) == 16


def test_a_pipe_instead_of_a_part_is_an_error(data: Path, tmp_path: Path) -> None:
    """Reading it would wait forever."""
    (tmp_path / "old").mkdir()
    os.mkfifo(tmp_path / "old" / "part-00000000.npz")
    assert code_of(OLD, NEW, data, QUIET, out=tmp_path) == "output_failed"


def test_a_folder_that_another_comparison_uses_is_refused(data: Path, result: Comparison, tmp_path: Path) -> None:
    codes: list[str] = []

    def try_again(*_: object) -> None:
        if not codes:
            codes.append(code_of(OLD, NEW, data, QUIET, out=tmp_path))

    compare(OLD, NEW, data, QUIET, out=tmp_path, progress=try_again)
    assert codes == ["busy"]
    with folder_lock(tmp_path), pytest.raises(UsageError) as caught:
        write_comparison(tmp_path, result)
    assert caught.value.code == "busy"
    assert write_comparison(tmp_path, result).exists()


def test_an_image_that_crashes_the_decoder_costs_one_row(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = compare(OLD, NEW, data, QUIET)
    original = LabelledImages.source

    def source(self: LabelledImages, index: int) -> Source:
        return FaultySource("deadly", "", fault="segv") if index == 5 else original(self, index)

    monkeypatch.setattr(LabelledImages, "source", source)
    result = compare(OLD, NEW, data, QUIET)
    assert result.old.errors == result.new.errors == {"decoder_crashed": 1} | expected.old.errors
    assert result.compared == 57
    changed = {change.row for change in expected.changed} - {5}
    assert {change.row for change in result.changed} == changed


def test_outputs_that_are_not_finite_are_counted(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Predictor.decoded_outputs

    def spoil(self: Predictor, decoded: Iterable[Any], **options: Any) -> Iterator[Any]:
        for key, outcome in original(self, decoded, **options):
            if self.name == NEW.name and key in (2, 40) and isinstance(outcome, Output):
                yield key, outcome._replace(logits=outcome.logits * np.float32("nan"))
            else:
                yield key, outcome

    monkeypatch.setattr(Predictor, "decoded_outputs", spoil)
    result = compare(OLD, NEW, data, QUIET)
    assert result.new.errors == {"empty": 1, "non_finite": 2, "unsupported_format": 1}
    assert result.compared == 56


def test_outputs_of_another_sample_are_computed_again(data: Path, tmp_path: Path) -> None:
    first, second = (ComparisonSettings(speed=False, sampled=45, seed=seed) for seed in (0, 1))
    expected = compare(OLD, NEW, data, second)
    compare(OLD, OLD, data, first, out=tmp_path)
    assert compare(OLD, NEW, data, second, out=tmp_path) == expected


def start_run(data: Path, out: Path) -> None:
    """Start a run of the old model that is interrupted after its first shard."""

    def interrupt(event: RunEvent) -> None:
        if isinstance(event, ShardFinished):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bulk.run(str(data), out, OLD, RunSettings(shard_rows=16, dtype="float32"), on_event=interrupt)


def test_a_run_that_is_not_finished(data: Path, tmp_path: Path, result: Comparison) -> None:
    start_run(data, tmp_path / "run")
    rows = sum(shard.rows for shard in finished_shards(tmp_path / "run"))
    assert 0 < rows < 60
    partial = compare(tmp_path / "run", NEW, settings=QUIET)
    assert (partial.images, partial.old.errors["not_in_run"]) == (60, 60 - rows)
    keys = [open_labelled(data).key(i) for i in range(60)]
    changed = {Path(change.key).name for change in result.changed if keys.index(change.key) < rows}
    assert {Path(change.key).name for change in partial.changed} == changed


def test_a_sample_bounds_the_embeddings_in_memory(data: Path) -> None:
    result = compare(OLD, NEW, data, ComparisonSettings(speed=False, sampled=45))
    assert result.neighbors is not None
    assert 40 <= result.neighbors.images <= 45
    assert result.compared == 58


# --- alignment, speed, words ------------------------------------------------------------------------------------------


def test_an_alignment_is_written_only_if_it_keeps_neighbors(
    result: Comparison, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("alignment") / "a.safetensors"
    data = folder_of(path.parent / "data", NAMES, 4 * OLD.width // 5 + 12)
    near = compare(OLD, predictor_of(0.01), data, QUIET)
    assert near.alignment is not None
    assert len(list(sentences(near))) == 5
    assert near.agreement is not None
    moved = f"; mean total variation distance of the probabilities: {near.agreement.total_variation:.3f}"
    assert any(sentence.endswith(moved) for sentence in sentences(near))
    written = near.write_alignment(path)
    stored = Alignment.load(path)
    assert (stored.old.fingerprint, stored.new.fingerprint) == (OLD.fingerprint, near.new.fingerprint)
    assert stored.fingerprint == written.fingerprint
    assert stored.kept == near.alignment.kept
    path.unlink()
    far = compare(OLD, predictor_of(5.0), data, QUIET)
    assert far.alignment is not None
    assert f"{100 * far.alignment.kept:.1f} % of the 10 nearest images that those of" in refusal(far, path).message
    assert "tessella run INPUT -m" in refusal(far, path).hint
    assert "give at least" in refusal(result, path).hint  # too few images
    sampled = refusal(replace(result, compared=1000), path)
    assert sampled.message.startswith("the sampled ones of 1,000 images are too few")
    assert sampled.hint.startswith("use ComparisonSettings(sampled=")
    assert not path.exists()


def refusal(comparison: Comparison, path: Path) -> TessellaError:
    with pytest.raises(TessellaError) as caught:
        comparison.write_alignment(path)
    assert caught.value.code == "alignment_refused"
    return caught.value


@pytest.mark.quiet
def test_speed_is_measured_for_two_models(data: Path) -> None:
    result = compare(OLD, NEW, data)
    assert result.speed is not None
    assert result.speed.rounds == 5
    assert 0.2 < result.speed.lowest <= result.speed.ratio <= result.speed.highest < 5  # the same architecture
    assert result.speed.old == pytest.approx(result.speed.new / result.speed.ratio, rel=0.8)
    assert result.old.parameters == sum(parameter.numel() for parameter in OLD.model.parameters())


def test_the_result_is_json(result: Comparison) -> None:
    values = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert result.accuracy is not None
    assert values["accuracy"]["gained"] == result.accuracy.gained
    assert values["accuracy"]["p_value"] == result.accuracy.change.p_value
    assert values["changed"] == len(result.changed)
    assert values["verdict"] == verdict(result)
    assert len(list(sentences(result))) == 4


def test_a_p_value_is_never_zero(result: Comparison) -> None:
    assert [p_text(value) for value in (1.0, 0.0234, 3.5e-130)] == ["= 1", "= 0.023", "= 3.5e-130"]
    assert result.accuracy is not None
    accuracy = replace(result.accuracy, change=paired_difference(50_000, 3000, 300))
    assert verdict(replace(result, accuracy=accuracy)).endswith(", p < 1e-300")
