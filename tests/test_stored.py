"""Files that an earlier version wrote are still read; stored/README.md describes them.

Every test works on a copy, and calls what users call: the command line, `load`, `create_model` and `read_rows`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

import tessella
from tessella.bulk import read_rows
from tessella.engine.tuned import Workload
from tessella.machine import thread_count

from .cli.test_cli import run
from .stored.make import IMAGE, INPUTS, MODEL, ROOT, RUN, SAVED, TRAIN

STORED = Path(__file__).resolve().parent / "stored"
EXPECTED = json.loads((STORED / "expected.json").read_text())
ROWS, BAD = 23, 1


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the artefacts."""
    return shutil.copytree(STORED, tmp_path / "stored")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: the number of threads is one of the settings of a run, and the stored runs were made with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [row for table in read_rows(out) for row in table.to_pylist()]


def relocate(out: Path, root: Path) -> None:
    """Rewrite the listing of a run to name the copied inputs, and give these the times in the listing."""
    for folder in (out, out / "copy"):
        listing = pq.ParquetFile(folder / "manifest.parquet")
        shards = [listing.read_row_group(i) for i in range(listing.num_row_groups)]
        with pq.ParquetWriter(folder / "manifest.parquet", listing.schema_arrow) as writer:
            for shard in shards:
                rows = shard.to_pylist()
                for row in rows:
                    row["path"] = row["path"].replace(os.fsencode(ROOT), os.fsencode(root))
                    os.utime(row["path"], ns=(row["mtime"], row["mtime"]))
                writer.write_table(pa.Table.from_pylist(rows, shard.schema))
        facts = json.loads((folder / "run.json").read_text())
        del facts["check"]
        facts["manifest"] = hashlib.sha256((folder / "manifest.parquet").read_bytes()).hexdigest()
        facts["check"] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        (folder / "run.json").write_text(json.dumps(facts))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def assert_equal_weights(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float = 0.0) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=atol, msg=name)


# --- bulk runs --------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_read(root: Path) -> None:
    rows = rows_of(root / "run-finished")
    assert len(rows) == ROWS
    assert [row["key"] for row in rows if row["status"] != "ok"] == ["broken.png"]
    with_images = [row for row in rows if row["status"] == "ok"]
    first = with_images[0]
    expected = EXPECTED["saved/convmixer"]["probabilities"]
    assert first["top_index"] == np.argsort(expected)[::-1].tolist()
    np.testing.assert_allclose(first["top_probability"], sorted(expected, reverse=True), atol=1e-5)
    assert first["top_label"][0] == "abcde"[first["top_index"][0]]
    assert all(np.shape(row["embedding"]) == (16,) for row in with_images)
    np.testing.assert_allclose([np.linalg.norm(row["embedding"]) for row in with_images], 1, atol=2e-3)


@pytest.mark.parametrize(("name", "shards"), [("run-finished", 6), ("run-unfinished", 1)])
def test_a_run_is_verified_without_damage(root: Path, name: str, shards: int) -> None:
    result = json.loads(run("verify-run", name, "--json", cwd=root)[0])
    assert result["damage"] == []
    assert (result["finished"], result["shards"]) == (shards, 6)
    shard = next((root / name / "shards").iterdir())  # damage must be result
    shard.write_bytes(shard.read_bytes()[:-1])
    assert json.loads(run("verify-run", name, "--json", cwd=root, status=6)[0])["damage"]


def test_a_finished_run_is_not_computed_again(root: Path) -> None:
    out = root / "run-finished"
    relocate(out, root)
    shards = {path.name: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    result = json.loads(run("run", *RUN, "-o", "run-finished", "--json", cwd=root)[0])
    assert (result["rows"], result["ok"]) == (ROWS, ROWS - BAD)
    assert {path.name: path.stat().st_mtime_ns for path in (out / "shards").iterdir()} == shards


def test_an_unfinished_run_is_resumed_and_its_index_updated(root: Path) -> None:
    out = root / "run-unfinished"
    relocate(out, root)
    before = len(rows_of(out))
    first = next((out / "shards").iterdir())
    assert (before, [path.name for path in (out / "shards").iterdir()]) == (4, [first.name])
    written = first.stat().st_mtime_ns
    result = json.loads(run("run", *RUN, "-o", "run-unfinished", "--json", cwd=root)[0])
    assert (result["rows"], result["ok"], result["errors"]) == (ROWS, ROWS - BAD, {"corrupt_image": BAD})
    assert first.stat().st_mtime_ns == written
    for resumed, expected in zip(rows_of(out), rows_of(root / "run-finished"), strict=True):
        same = ("key", "status", "sha256", "bytes", "width", "height", "top_index", "top_label")
        assert [resumed[name] for name in same] == [expected[name] for name in same]
        assert bool(resumed["message"]) == (resumed["status"] != "ok")
        np.testing.assert_allclose(resumed["top_probability"], expected["top_probability"], atol=1e-5)
        if expected["embedding"] is not None:  # float16
            np.testing.assert_allclose(resumed["embedding"], expected["embedding"], atol=1e-3)
    report = json.loads(run("index", "run-unfinished", "--json", cwd=root)[0])
    assert (report["rows"], report["added"], report["removed"], report["rebuilt"]) == (ROWS - BAD, 18, 0, "")
    assert json.loads(run("verify-run", "run-unfinished", "--json", cwd=root)[0])["damage"] == []


def test_a_run_with_other_settings_is_refused(root: Path) -> None:
    relocate(root / "run-unfinished", root)
    error = run("run", *RUN, "--top", "2", "-o", "run-unfinished", cwd=root, status=2)[1]
    assert "top 5, now 2" in error


def test_an_input_that_changed_since_it_was_listed_is_reported(root: Path) -> None:
    relocate(root / "run-unfinished", root)
    changed = root / INPUTS[0] / "dark" / "3.png"
    time = changed.stat().st_mtime_ns + 1
    os.utime(changed, ns=(time, time))
    result = json.loads(run("run", *RUN, "-o", "run-unfinished", "--json", cwd=root)[0])
    assert result["errors"] == {"changed_input": 1, "corrupt_image": BAD}


# --- search -----------------------------------------------------------------------------------------------------------


def nearest(out: Path, vector: Any, exclude: str = "") -> list[str]:
    """Return the keys of the rows with the highest cosine, from the embeddings in the run's shards."""
    rows = [row for row in rows_of(out) if row["status"] == "ok" and row["key"] != exclude]
    vectors = np.array([row["embedding"] for row in rows], np.float32)
    cosines = vectors @ np.asarray(vector, np.float32) / np.linalg.norm(vectors, axis=1)
    return [rows[i]["key"] for i in np.argsort(-cosines, kind="stable")]


@pytest.mark.parametrize("condition", [[], ["--where", "width = 16"]])  # with a condition LanceDB reads its table
@pytest.mark.parametrize("query", ["./" + IMAGE, IMAGE, "query.npz"])
def test_the_index_finds_the_nearest_rows(root: Path, query: str, condition: list[str]) -> None:
    """The query is an image, the key of a row, which is then excluded from the results, or a stored embedding."""
    vector = next(row["embedding"] for row in rows_of(root / "run-finished") if row["key"] == IMAGE)
    expected = nearest(root / "run-finished", vector, exclude=IMAGE if query == IMAGE else "")
    out = run("search", "run-finished", query, "-m", MODEL, "-k", "5", "--json", *condition, cwd=root)[0]
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["key"] for row in rows] == expected[:5]
    assert (rows[0]["key"] == IMAGE) == (query != IMAGE)
    assert query == IMAGE or rows[0]["score"] == pytest.approx(1, abs=1e-3)


def test_the_index_is_intact_and_is_not_rebuilt(root: Path) -> None:
    report = json.loads(run("index", "run-finished", "--json", cwd=root)[0])
    assert (report["rows"], report["added"], report["removed"], report["rebuilt"]) == (ROWS - BAD, 0, 0, "")


# --- training ---------------------------------------------------------------------------------------------------------


def epochs_of(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "epoch"]


def test_an_interrupted_training_is_resumed_to_the_same_weights(root: Path) -> None:
    out, finished = root / "train-interrupted", root / "train-finished"
    epochs = epochs_of(out)
    saved = (out / "checkpoints" / "at-00000008" / "state.json").stat().st_mtime_ns
    run("train", *TRAIN, "-o", "train-interrupted", cwd=root)
    assert (out / "checkpoints" / "at-00000008" / "state.json").stat().st_mtime_ns == saved  # it was not started again
    assert (len(epochs), epochs_of(out)[:1]) == (1, epochs)
    assert [row["step"] for row in epochs_of(out)] == [4, 8]
    assert_equal_weights(weights_of(out), weights_of(finished), atol=1e-3)
    for name in ("train.json", "images.npz"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()


def test_a_finished_training_keeps_its_weights(root: Path) -> None:
    weights, epochs = weights_of(root / "train-finished"), epochs_of(root / "train-finished")
    run("train", *TRAIN, "-o", "train-finished", cwd=root)
    assert_equal_weights(weights_of(root / "train-finished"), weights)
    assert epochs_of(root / "train-finished") == epochs


def test_a_training_with_other_settings_or_images_is_refused(root: Path) -> None:
    error = run("train", *TRAIN, "--lr", "0.1", "-o", "train-interrupted", cwd=root, status=2)[1]
    assert "lr was 0.003, now 0.1" in error
    shutil.copy(root / "images/val/dark/0.png", root / "images/train/dark/0.png")  # of the same size
    run("train", *TRAIN, "-o", "train-interrupted", cwd=root, status=2)


def test_evaluate_knows_which_images_a_model_was_trained_on(root: Path) -> None:
    out, error = run("evaluate", "images", "-m", "local-dir:train-finished", "--json", cwd=root)
    result = json.loads(out)
    assert (result["images"], result["top1"]) == (16, 1.0)
    error = run("evaluate", "images", "--split", "all", "-m", "local-dir:train-finished", cwd=root)[1]
    assert "32 of the 48 images" in error


def test_a_checkpoint_of_a_training_run_is_read_as_weights(root: Path) -> None:
    path = root / "train-interrupted" / "checkpoints" / "at-00000005" / "ema.safetensors"
    args = json.loads((root / "config.json").read_text())["model_args"]
    model = tessella.create_model("mixer_s32_224", checkpoint_path=path, num_classes=2, **args)
    assert_equal_weights(model.state_dict(), safetensors.torch.load_file(path))


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*(f"saved/{name}" for name in SAVED), "train-finished"])
def test_a_saved_model_is_loaded_with_its_fingerprint(root: Path, name: str) -> None:
    predictor = tessella.load(f"local-dir:{root / name}", engine="eager")
    assert predictor.fingerprint == EXPECTED[name]["fingerprint"]
    assert_equal_weights(predictor.model.state_dict(), weights_of(root / name))
    probabilities = predictor.predict(root / IMAGE).probabilities[0]
    np.testing.assert_allclose(probabilities, EXPECTED[name]["probabilities"], atol=1e-5)


def test_a_checkpoint_of_timms_training_script_is_loaded_strictly(root: Path) -> None:
    arch, args = SAVED["convmixer"]
    model = tessella.create_model(arch, checkpoint_path=root / "checkpoint.pth.tar", num_classes=5, **args)
    assert_equal_weights(model.state_dict(), weights_of(root / "saved" / "convmixer"))


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_an_exported_model_gives_the_same_results(root: Path, engine: str) -> None:
    predictor = tessella.load(f"local-dir:{root / 'exported' / engine}")
    expected = EXPECTED[f"exported/{engine}"]
    assert predictor.fingerprint == expected["fingerprint"] == EXPECTED["saved/convmixer"]["fingerprint"]
    assert predictor.labels == tuple("abcde")
    probabilities = predictor.predict(root / IMAGE).probabilities[0]
    np.testing.assert_allclose(probabilities, expected["probabilities"], atol=1e-4)


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_tune_record_is_listed_and_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(root))
    path = next((root / "tuned").iterdir())
    rows = json.loads(run("doctor", "--json")[0])
    assert "rewritten float32, 1 x 8 images" in json.dumps(rows)
    record = json.loads(path.read_text())
    facts = record["conditions"]
    height, width = facts["size"]
    facts = Workload(facts["arch"], facts["config"], (height, width), thread_count()).conditions()  # of this machine
    record["conditions"] = facts
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    (root / "tuned" / f"{facts['arch']}-{key}.json").write_text(json.dumps(record))
    plan = tessella.load(f"local-dir:{root / 'saved' / 'convmixer'}").plan
    winner = record["winners"]["throughput"]
    assert (plan.engine, plan.precision, plan.batch_size, plan.streams) == ("rewritten", "float32", 8, 1)
    assert any(choice.reason == winner["reason"] for choice in plan.choices)


def test_the_embeddings_of_a_probe_are_used_again(root: Path) -> None:
    caches = {path.name: path.read_bytes() for path in (root / "probe").glob("embeddings-*.npz")}
    assert len(caches) == 2
    times = [(root / "probe" / name).stat().st_mtime_ns for name in caches]
    expected = json.loads((root / "probe" / "probe.json").read_text())
    result = json.loads(run("probe", "images", "-m", MODEL, "--shots", "1,5", "-o", "probe", "--json", cwd=root)[0])
    assert [(root / "probe" / name).stat().st_mtime_ns for name in caches] == times
    assert result.keys() == expected.keys()
    for name in ("fingerprint", "data_fingerprints", "classes", "train_count", "neighbours"):
        assert result[name] == expected[name]
    assert result["linear"]["top1"] == expected["linear"]["top1"] == 1
