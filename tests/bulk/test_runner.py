"""Bulk runs: every input is one row, in order; stopped, killed and repeated runs end with the same bytes."""

from __future__ import annotations

import csv
import functools
import io
import json
import signal
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tessella
from tessella.bulk import (
    AutomaticEngine,
    RunEvent,
    RunRemark,
    RunSettings,
    RunSummary,
    ShardFinished,
    manifest,
    read_rows,
    run,
    run_folder,
)
from tessella.bulk.ledger import Ledger
from tessella.data.decode import decode
from tessella.data.source import Source
from tessella.engine.base import Engine
from tessella.engine.tuned import Tuned
from tessella.errors import ImageError, RunError, UsageError
from tessella.predictor import Predictor
from tessella.storage import folder_lock
from tessella.weights.catalogue import DEFAULT_MODELS, default_model

from ..archives import EXTRACTION
from ..data.test_isolated import FaultySource
from .bulk_kills import killed_and_whole, make_rows

GOOD, BAD = 50, 4


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tessella.load(engine="eager", batch_size=4, device="cpu")


def png(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    size = (int(rng.integers(20, 50)), int(rng.integers(20, 50)), 3)
    Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 50 good images and 4 bad ones between them, in two subfolders."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("a", "b"):
        (folder / name).mkdir()
    for i in range(GOOD):
        (folder / "ab"[i % 2] / f"{i}.png").write_bytes(png(i))
    (folder / "a" / "5 empty.png").write_bytes(b"")
    (folder / "a" / "7 cut.png").write_bytes(png(7)[:60])
    (folder / "b" / "8 text.jpg").write_bytes(b"this is no image")
    (folder / "b" / "9 gone.png").symlink_to(folder / "nowhere")
    return folder


def start(images: Path, out: Path, predictor: Predictor, **more: Any) -> RunSummary:
    options: dict[str, Any] = {name: more.pop(name) for name in ("on_event",) if name in more}
    return run([str(images)], out, predictor, RunSettings(**dict(shard_rows=8, processes=1) | more), **options)


def rows(out: Path) -> list[dict[str, Any]]:
    return [row for table in read_rows(out) for row in table.to_pylist()]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "shards").iterdir())}


@pytest.fixture(scope="module")
def uninterrupted(images: Path, predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    start(images, out, predictor)
    return out


def test_every_input_is_one_row_with_its_own_result(images: Path, uninterrupted: Path, predictor: Predictor) -> None:
    written = rows(uninterrupted)
    listed = sorted(str(path) for path in images.rglob("*.*"))
    assert sorted(row["key"] for row in written) == listed
    assert Counter(row["status"] for row in written) == {"ok": GOOD, "empty": 1, "corrupt_image": 1,
                                                       "unsupported_format": 1, "not_found": 1}  # fmt: skip
    for row in written:
        if row["status"] != "ok":
            assert row["embedding"] is None
            assert row["top_index"] == []
            assert row["message"]
            continue
        expected = predictor.predict(row["key"])
        best = np.argsort(-expected.probabilities[0])[:5]
        assert row["top_index"] == best.tolist()
        assert row["top_label"] == [predictor.labels[i] for i in best]
        np.testing.assert_allclose(row["top_probability"], expected.probabilities[0][best], atol=1e-5)
        np.testing.assert_allclose(row["embedding"], expected.embeddings[0], atol=1e-3)
        with Image.open(row["key"]) as image:
            assert (row["width"], row["height"]) == image.size
        assert row["bytes"] == Path(row["key"]).stat().st_size


def test_summary_log_and_metadata_of_the_shards(uninterrupted: Path, predictor: Predictor) -> None:
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert (summary["rows"], summary["ok"], sum(summary["errors"].values())) == (GOOD + BAD, GOOD, BAD)
    shards = [pq.ParquetFile(path) for path in sorted((uninterrupted / "shards").iterdir())]
    assert [shard.metadata.num_rows for shard in shards] == [8] * 6 + [6]
    metadata = json.loads(shards[0].schema_arrow.metadata[b"tessella"])
    assert metadata["fingerprint"] == predictor.fingerprint
    assert shards[0].schema_arrow.field("embedding").type == pa.list_(pa.float16(), predictor.width)
    log = [json.loads(line) for line in (uninterrupted / "log.jsonl").read_text().splitlines()]
    assert [line["rows_done"] for line in log] == [8, 16, 24, 32, 40, 48, 54]


def test_repeated_runs_write_the_same_bytes_and_finished_runs_are_unchanged(
    images: Path, uninterrupted: Path, predictor: Predictor, tmp_path: Path
) -> None:
    start(images, tmp_path / "again", predictor, processes=2)
    assert contents(tmp_path / "again") == contents(uninterrupted)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "again" / "shards").iterdir()}
    summary = start(images, tmp_path / "again", predictor)
    assert summary.images_per_second is None
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "again" / "shards").iterdir()} == before


def test_a_stopped_run_resumes_with_the_unfinished_shards(
    images: Path, uninterrupted: Path, predictor: Predictor, tmp_path: Path
) -> None:
    seen: list[int] = []

    def stop(event: RunEvent) -> None:
        if isinstance(event, ShardFinished):
            seen.append(event.shard.id)
            if len(seen) in (2, 5):
                signal.raise_signal(signal.SIGTERM)

    for _ in range(2):
        with pytest.raises(RunError, match="stopped by SIGTERM") as caught:
            start(images, tmp_path / "cut", predictor, on_event=stop)
        assert (caught.value.code, caught.value.exit_code) == ("interrupted", 130)
        assert not (tmp_path / "cut" / "summary.json").exists()
    start(images, tmp_path / "cut", predictor, on_event=stop)
    assert seen == list(range(7))  # none twice
    assert contents(tmp_path / "cut") == contents(uninterrupted)
    assert rows(tmp_path / "cut") == rows(uninterrupted)


def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    facts = killed_and_whole(make_rows(tmp_path / "rows.parquet", 200), tmp_path, kills=30)
    assert (facts["kills"], facts["lost"], facts["ends"]) == (30, 0, facts["byte_equal"])


def test_a_single_batch_is_not_split(
    images: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Splitting changes the last bits of CrossViT's numbers."""
    start(images, tmp_path / "run", predictor, shard_rows=4)
    before = contents(tmp_path / "run")
    with Ledger(tmp_path / "run") as ledger:
        ledger.forget([3])
    monkeypatch.setattr(Engine, "_run_split", lambda *_: pytest.fail("in parts"))
    start(images, tmp_path / "run", predictor, shard_rows=4)
    assert contents(tmp_path / "run") == before


def test_files_added_later_are_not_in_the_run(images: Path, predictor: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.png").write_bytes(png(i))

    def add(event: RunEvent) -> None:
        if isinstance(event, ShardFinished) and event.shard.id == 0:
            (folder / "0 new.png").write_bytes(png(99))
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(RunError):
        start(folder, tmp_path / "run", predictor, on_event=add)
    assert start(folder, tmp_path / "run", predictor).rows == 12
    assert not any("new" in row["key"] for row in rows(tmp_path / "run"))


@pytest.mark.parametrize(
    ("changed", "message"), [(dict(top=3), "top 5, now 3"), (dict(dtype="float32"), "dtype 'float16', now 'float32'")]
)
def test_a_run_with_other_settings_is_refused(
    images: Path, uninterrupted: Path, predictor: Predictor, changed: dict[str, Any], message: str
) -> None:
    before = contents(uninterrupted)
    with pytest.raises(UsageError, match=message) as caught:
        start(images, uninterrupted, predictor, **changed)
    assert caught.value.code == "changed_run"
    assert contents(uninterrupted) == before


def test_a_run_with_another_model_is_refused_and_the_hint_names_its_own(images: Path, tmp_path: Path) -> None:
    former = DEFAULT_MODELS["embed"][-1]
    start(images, tmp_path / "run", tessella.load(former))
    with pytest.raises(UsageError, match=f"model '{former}', now '{default_model()}'") as caught:
        start(images, tmp_path / "run", tessella.load())
    assert caught.value.code == "changed_run"
    expected = f"use another --out, or the model of that run: -m {former}, in Python tessella.load('{former}')"
    assert caught.value.hint == expected


def test_a_resumed_run_keeps_its_engine_after_tuning(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(**options: Any) -> Predictor:
        return tessella.load(device="cpu", **options)

    def stop(event: RunEvent) -> None:
        if isinstance(event, ShardFinished):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("tessella.engine.tuned.find_tuned", lambda *_: None)
    settings = RunSettings(shard_rows=16, processes=1)
    run(images, tmp_path / "whole", load, settings)
    with pytest.raises(RunError, match="stopped by SIGTERM"):
        run(images, tmp_path / "cut", load, settings, on_event=stop)
    tuned = Tuned("eager", "float32", "", 1, 16, "measured")
    monkeypatch.setattr("tessella.engine.tuned.find_tuned", lambda *_: tuned)
    with pytest.raises(UsageError, match="engine 'openvino', now 'eager'") as caught:
        run(images, tmp_path / "cut", load, settings)  # the caller may have chosen the engine
    assert caught.value.code == "changed_run"
    events: list[RunEvent] = []
    summary = run(images, tmp_path / "cut", AutomaticEngine(load), settings, on_event=events.append)
    assert summary.rows == GOOD + BAD
    assert RunRemark(text="resuming with the engine of the run: openvino, float32, batch size 8 (now: eager)") in events
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_run_of_a_version_with_another_default_is_resumed(images: Path, tmp_path: Path) -> None:
    """PyTorch with rewrites was the default before OpenVINO."""
    load = functools.partial(tessella.load, device="cpu")
    former = functools.partial(load, engine="rewritten")
    settings = RunSettings(shard_rows=16, processes=1)
    run(images, tmp_path / "whole", former, settings)

    def stop(event: RunEvent) -> None:
        if isinstance(event, ShardFinished):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(RunError, match="stopped by SIGTERM"):
        run(images, tmp_path / "cut", former, settings, on_event=stop)
    events: list[RunEvent] = []
    run(images, tmp_path / "cut", AutomaticEngine(load), settings, on_event=events.append)
    expected = "resuming with the engine of the run: rewritten, float32, batch size 8 (now: openvino)"
    assert RunRemark(text=expected) in events
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_run_started_with_another_engine_is_refused_after_tuning(
    images: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tessella.engine.tuned.find_tuned", lambda *_: None)
    load = AutomaticEngine(functools.partial(tessella.load, device="cpu"))
    with pytest.raises(UsageError, match="engine 'eager', now 'openvino'"):
        run(images, uninterrupted, load, RunSettings(shard_rows=8))


def test_missing_inputs_are_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    absent = [tmp_path / "absent", tmp_path / "absent.png"]
    with pytest.raises(UsageError, match="there is no file or folder") as caught:
        run(absent, tmp_path / "run", lambda: pytest.fail("the model was loaded"))
    assert caught.value.code == "not_found"
    assert not (tmp_path / "run").exists()


def test_a_run_with_another_transform_is_refused(images: Path, uninterrupted: Path, predictor: Predictor) -> None:
    other = tessella.load(engine="eager", batch_size=4, device="cpu", transform="fast")
    with pytest.raises(UsageError, match=rf"fingerprint '{predictor.fingerprint}', now '{other.fingerprint}'"):
        start(images, uninterrupted, other)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("shard_rows", value) for value in (0, -1, 10**19, 2.5, True, "8")),
        *(("processes", value) for value in (0, 10**23, 1.5)),
        *(("timeout", value) for value in (0, -1.0, float("nan"), float("inf"), 10**400, "30")),
        *(("top", value) for value in (-1, 10**19, 2.5)),
    ],
)
def test_invalid_numbers_are_refused_before_anything_is_written(
    images: Path, predictor: Predictor, tmp_path: Path, name: str, value: Any
) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        start(images, tmp_path / "run", predictor, **{name: value})
    assert caught.value.code == "bad_argument"
    assert not (tmp_path / "run").exists()


def test_a_second_run_into_the_same_folder_is_refused(images: Path, uninterrupted: Path, predictor: Predictor) -> None:
    with folder_lock(uninterrupted), pytest.raises(UsageError, match="another process is writing") as caught:
        start(images, uninterrupted, predictor)
    assert caught.value.code == "busy"


def test_archives_tables_lists_and_missing_files(images: Path, predictor: Predictor, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "some.tar", "w") as archive:
        for i in range(3):
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(png(i))
            archive.addfile(member, io.BytesIO(png(i)))
    table = pa.table(dict(image=[dict(bytes=png(i), path=None) for i in range(3, 6)]))
    pq.write_table(table, tmp_path / "some.parquet", row_group_size=2)
    (tmp_path / "6.png").write_bytes(png(6))
    paths = pa.table(dict(image=["6.png", "7.png"]))
    pq.write_table(paths, tmp_path / "paths.parquet")
    inputs = [str(tmp_path / name) for name in ("some.tar", "some.parquet", "paths.parquet")]
    absent = str(tmp_path / "absent.png")
    run([*inputs, "-"], tmp_path / "run", predictor, RunSettings(processes=1), stdin=[f"{absent}\n"])
    written = rows(tmp_path / "run")
    assert [row["key"] for row in written] == [
        *(f"{inputs[0]}::{i}.png" for i in range(3)), *(f"{inputs[1]}:{i}" for i in range(3)),
        *(f"{inputs[2]}:{i}" for i in range(2)), absent,
    ]  # fmt: skip
    assert [row["status"] for row in written] == ["ok"] * 7 + ["not_found"] * 2
    expected = predictor.embed([png(i) for i in range(7)])
    np.testing.assert_allclose([row["embedding"] for row in written[:7]], expected, atol=1e-3)


def test_unusual_file_names_are_kept(predictor: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    names = ["tab\there.png", "line\nbreak.png", "bücher 猫.png", "quote'\".png", "\\xff.png"]
    for name in names:
        (folder / name).write_bytes(png(1))
    (Path(str(folder).encode().decode()) / b"\xff.png".decode("utf-8", "surrogateescape")).write_bytes(png(2))
    (folder / 'broken,\n"it".png').write_bytes(b"")
    (folder / "carriage\rreturn.png").write_bytes(b"")
    bad_inputs = tmp_path / "bad.csv"
    assert start(folder, tmp_path / "run", predictor, bad_inputs=bad_inputs).ok == 6
    keys = {Path(row["key"]).name for row in rows(tmp_path / "run")}
    assert keys == {
        *names[:-1],
        "\\\\xff.png",
        "\\xff.png",
        'broken,\n"it".png',
        "carriage\rreturn.png",
    }  # one key belongs to one name
    with bad_inputs.open(newline="") as file:
        assert [Path(line["key"]).name for line in csv.DictReader(file)] == [
            'broken,\n"it".png',
            "carriage\rreturn.png",
        ]


def test_bad_inputs_are_listed_in_a_csv_file(images: Path, predictor: Predictor, tmp_path: Path) -> None:
    start(images, tmp_path / "run", predictor, bad_inputs=tmp_path / "bad.csv")
    with (tmp_path / "bad.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {(Path(line["key"]).name, line["status"]) for line in lines} == {
        ("5 empty.png", "empty"), ("7 cut.png", "corrupt_image"), ("8 text.jpg", "unsupported_format"),
        ("9 gone.png", "not_found"),
    }  # fmt: skip
    assert all(line["message"] for line in lines)


def test_images_that_crash_or_hang_their_decoder_cost_one_row_each(
    images: Path, uninterrupted: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = {"3.png": "segv", "4.png": "exit", "20.png": "exit", "30.png": "hang"}
    read = manifest._source

    def hostile(key: str, *cells: Any) -> Source:
        fault = faults.get(Path(key).name)
        return read(key, *cells) if fault is None else FaultySource(key, str(tmp_path / "touched"), fault=fault)

    monkeypatch.setattr(manifest, "_source", hostile)
    start(images, tmp_path / "run", predictor, processes=2, timeout=6.0)
    expected = {row["key"]: row for row in rows(uninterrupted)}
    for row in rows(tmp_path / "run"):
        fault = faults.get(Path(row["key"]).name)
        if fault is None:
            other = expected[row["key"]]
            for name in ("embedding", "top_probability"):  # their batches have one image less
                actual, wanted = (np.array(values.pop(name) or 0, np.float32) for values in (row, other))
                np.testing.assert_allclose(actual, wanted, atol=1e-3)
            assert row == other
        else:
            assert row["status"] == ("timeout" if fault == "hang" else "decoder_crashed")
            assert row["embedding"] is None


def test_an_image_with_non_finite_results_is_an_error(
    images: Path, uninterrupted: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [row["key"] for row in rows(uninterrupted) if row["status"] == "ok"]
    decoded_outputs = predictor.decoded_outputs

    def some_nan(decoded: Any, **settings: Any) -> Any:
        seen = 0
        for key, outcome in decoded_outputs(decoded, **settings):
            if not isinstance(outcome, ImageError):
                seen += 1
                if seen == 5:
                    outcome.embedding[3] = np.nan
                if seen == 6:
                    outcome.logits[0] = np.inf
            yield key, outcome

    monkeypatch.setattr(predictor, "decoded_outputs", some_nan)
    summary = start(images, tmp_path / "run", predictor)
    assert summary.errors["non_finite"] == 2
    assert summary.rows == summary.ok + sum(summary.errors.values())
    assert [row["key"] for row in rows(tmp_path / "run") if row["status"] == "non_finite"] == good[4:6]


def test_broken_files_between_photographs(shared_data: Path, predictor: Predictor, tmp_path: Path) -> None:
    """Each of 647 files and 60 photographs has the status and size that decoding the file alone gives."""
    with tarfile.open(shared_data / "odd-images.tar.gz") as archive:
        archive.extractall(tmp_path / "images", **EXTRACTION)
    with tarfile.open(shared_data / "photos.tar") as archive:
        for member in [member for member in archive if member.name.endswith(".jpg")][:60]:
            archive.extract(member, tmp_path / "images", **EXTRACTION)
    listed = sorted(str(path) for path in (tmp_path / "images").rglob("*") if path.is_file())
    summary = run(["-"], tmp_path / "run", predictor, RunSettings(processes=2), stdin=listed)
    written = rows(tmp_path / "run")
    assert [row["key"] for row in written] == listed
    assert Counter(row["status"] for row in written) == {"ok": summary.ok, **summary.errors}
    assert summary.ok > 200
    assert sum(summary.errors.values()) > 200
    for row in written:
        try:
            height, width, _ = decode(row["key"]).shape
            alone = ("ok", width, height)
        except ImageError as error:
            alone = (error.code, row["width"], row["height"])
        if row["status"] == "too_elongated":  # which decoding alone does not ask
            continue
        assert (row["status"], row["width"], row["height"]) == alone, row["key"]


def test_invalid_settings_are_refused_before_anything_is_written(
    images: Path, predictor: Predictor, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="named more than once"):
        run([str(images), str(images / "a")], tmp_path / "run", predictor)
    assert not (tmp_path / "run" / run_folder.RUN).exists()
    with pytest.raises(UsageError, match="no inputs"):
        run(["-"], tmp_path / "run", predictor, stdin=[])
    with pytest.raises(UsageError, match="dtype"):
        start(images, tmp_path / "run", predictor, dtype="int8")
    for name, message in (("bad.txt", "cannot write"), ("absent/bad.csv", "no folder")):
        with pytest.raises(UsageError, match=message):
            start(images, tmp_path / "run", predictor, bad_inputs=tmp_path / name)


def test_a_damaged_listing_is_refused(images: Path, predictor: Predictor, tmp_path: Path) -> None:
    start(images, tmp_path / "run", predictor)
    path = tmp_path / "run" / manifest.MANIFEST
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match="is not the listing") as caught:
        start(images, tmp_path / "run", predictor)
    assert caught.value.code == "damaged_run"


def test_a_shard_missing_from_the_ledger_is_made_again(
    images: Path, uninterrupted: Path, predictor: Predictor, tmp_path: Path
) -> None:
    """As after a kill between renaming and recording."""
    start(images, tmp_path / "run", predictor)
    with Ledger(tmp_path / "run") as ledger:
        ledger.forget([2, 6])
    (tmp_path / "run" / "shards" / "shard-00000002.parquet").write_bytes(b"half")
    start(images, tmp_path / "run", predictor)
    assert contents(tmp_path / "run") == contents(uninterrupted)
