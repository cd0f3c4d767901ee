"""Bulk runs: every input is one row, in place; a run that is stopped, killed or repeated ends with the same bytes."""

from __future__ import annotations

import csv
import io
import json
import signal
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tessella
from tessella.bulk import manifest
from tessella.bulk.ledger import Ledger
from tessella.bulk.runner import Summary, read_rows, run
from tessella.cli import progress
from tessella.data.decode import decode
from tessella.data.source import Source
from tessella.engine.base import Engine
from tessella.errors import ImageError, OutputError, RunError, UsageError
from tessella.predictor import Predictor
from tessella.storage import folder_lock

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
    """50 good images and 4 bad ones between them, in two folders."""
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


def start(images: Path, out: Path, predictor: Predictor, **more: Any) -> Summary:
    return run([str(images)], out, predictor, **dict(shard_rows=8, processes=1) | more)


def rows(out: Path) -> list[dict[str, Any]]:
    return [row for table in read_rows(out) for row in table.to_pylist()]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "shards").iterdir())}


@pytest.fixture(scope="module")
def whole(images: Path, predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    start(images, out, predictor)
    return out


def test_every_input_is_one_row_with_its_own_answer(images: Path, whole: Path, predictor: Predictor) -> None:
    found = rows(whole)
    listed = sorted(str(path) for path in images.rglob("*.*"))
    assert sorted(row["key"] for row in found) == listed
    assert Counter(row["status"] for row in found) == {"ok": GOOD, "empty": 1, "corrupt_image": 1,
                                                       "unsupported_format": 1, "not_found": 1}  # fmt: skip
    for row in found:
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


def test_the_summary_counts_and_the_files_tell_what_they_are(whole: Path, predictor: Predictor) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["rows"], summary["ok"], sum(summary["errors"].values())) == (GOOD + BAD, GOOD, BAD)
    shards = [pq.ParquetFile(path) for path in sorted((whole / "shards").iterdir())]
    assert [one.metadata.num_rows for one in shards] == [8] * 6 + [6]
    told = json.loads(shards[0].schema_arrow.metadata[b"tessella"])
    assert told["fingerprint"] == predictor.fingerprint
    assert shards[0].schema_arrow.field("embedding").type == pa.list_(pa.float16(), predictor.width)
    log = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["rows_done"] for line in log] == [8, 16, 24, 32, 40, 48, 54]


def test_the_same_again_is_the_same_bytes_and_a_finished_run_stays(
    images: Path, whole: Path, predictor: Predictor, tmp_path: Path
) -> None:
    start(images, tmp_path / "again", predictor, processes=2)
    assert contents(tmp_path / "again") == contents(whole)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "again" / "shards").iterdir()}
    summary = start(images, tmp_path / "again", predictor)
    assert summary.images_per_second is None
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "again" / "shards").iterdir()} == before


def test_stopped_it_goes_on_with_what_is_not_finished(
    images: Path, whole: Path, predictor: Predictor, tmp_path: Path
) -> None:
    seen: list[int] = []

    def stop(event: dict[str, Any]) -> None:
        if event["kind"] == "shard":
            seen.append(event["id"])
            if len(seen) in (2, 5):
                signal.raise_signal(signal.SIGTERM)

    for _ in range(2):
        with pytest.raises(RunError, match="stopped by SIGTERM") as caught:
            start(images, tmp_path / "cut", predictor, watch=stop)
        assert (caught.value.code, caught.value.exit_code) == ("interrupted", 130)
        assert not (tmp_path / "cut" / "summary.json").exists()
    start(images, tmp_path / "cut", predictor, watch=stop)
    assert seen == list(range(7))  # none twice
    assert contents(tmp_path / "cut") == contents(whole)
    assert rows(tmp_path / "cut") == rows(whole)


def test_killed_at_any_moment_it_ends_as_the_whole_one(tmp_path: Path) -> None:
    facts = killed_and_whole(make_rows(tmp_path / "rows.parquet", 200), tmp_path, kills=30)
    assert (facts["kills"], facts["lost"], facts["ends"]) == (30, 0, facts["byte_equal"])


def test_a_batch_that_is_left_alone_is_not_worked_on_in_parts(
    images: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CrossViT's numbers differ in the last bits when it is."""
    start(images, tmp_path / "run", predictor, shard_rows=4)
    before = contents(tmp_path / "run")
    with Ledger(tmp_path / "run") as ledger:
        ledger.forget([3])
    monkeypatch.setattr(Engine, "_run_split", lambda *_: pytest.fail("in parts"))
    start(images, tmp_path / "run", predictor, shard_rows=4)
    assert contents(tmp_path / "run") == before


def test_inputs_that_change_later_are_not_in_the_run(images: Path, predictor: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.png").write_bytes(png(i))

    def add(event: dict[str, Any]) -> None:
        if event["kind"] == "shard" and event["id"] == 0:
            (folder / "0 new.png").write_bytes(png(99))
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(RunError):
        start(folder, tmp_path / "run", predictor, watch=add)
    assert start(folder, tmp_path / "run", predictor).rows == 12
    assert not any("new" in row["key"] for row in rows(tmp_path / "run"))


@pytest.mark.parametrize(
    ("changed", "told"), [(dict(top=3), "top 5, now 3"), (dict(dtype="float32"), "dtype 'float16', now 'float32'")]
)
def test_another_run_in_the_folder_is_refused(
    images: Path, whole: Path, predictor: Predictor, changed: dict[str, Any], told: str
) -> None:
    before = contents(whole)
    with pytest.raises(UsageError, match=told) as caught:
        start(images, whole, predictor, **changed)
    assert caught.value.code == "changed_run"
    assert contents(whole) == before


def test_another_model_or_transform_in_the_folder_is_refused(images: Path, whole: Path, predictor: Predictor) -> None:
    other = tessella.load(engine="eager", batch_size=4, device="cpu", transform="fast")
    with pytest.raises(UsageError, match=rf"fingerprint '{predictor.fingerprint}', now '{other.fingerprint}'"):
        start(images, whole, other)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("shard_rows", value) for value in (0, -1, 10**19, 2.5, True, "8")),
        *(("processes", value) for value in (0, 10**23, 1.5)),
        *(("timeout", value) for value in (0, -1.0, float("nan"), float("inf"), 10**400, "30")),
        *(("top", value) for value in (-1, 10**19, 2.5)),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_anything_is_written(
    images: Path, predictor: Predictor, tmp_path: Path, name: str, value: Any
) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        start(images, tmp_path / "run", predictor, **{name: value})
    assert caught.value.code == "bad_argument"
    assert not (tmp_path / "run").exists()


def test_two_runs_into_one_folder(images: Path, whole: Path, predictor: Predictor) -> None:
    with folder_lock(whole), pytest.raises(UsageError, match="another process is writing") as caught:
        start(images, whole, predictor)
    assert caught.value.code == "busy"


def test_archives_parquet_lists_and_what_is_not_there(images: Path, predictor: Predictor, tmp_path: Path) -> None:
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
    given = [str(tmp_path / name) for name in ("some.tar", "some.parquet", "paths.parquet")]
    absent = str(tmp_path / "absent.png")
    run([*given, "-"], tmp_path / "run", predictor, processes=1, stdin=[f"{absent}\n"])
    found = rows(tmp_path / "run")
    assert [row["key"] for row in found] == [
        *(f"{given[0]}::{i}.png" for i in range(3)), *(f"{given[1]}:{i}" for i in range(3)),
        *(f"{given[2]}:{i}" for i in range(2)), absent,
    ]  # fmt: skip
    assert [row["status"] for row in found] == ["ok"] * 7 + ["not_found"] * 2
    expected = predictor.embed([png(i) for i in range(7)])
    np.testing.assert_allclose([row["embedding"] for row in found[:7]], expected, atol=1e-3)


def test_names_that_are_odd_survive(predictor: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    names = ["tab\there.png", "line\nbreak.png", "bücher 猫.png", "quote'\".png", "\\xff.png"]
    for name in names:
        (folder / name).write_bytes(png(1))
    (Path(str(folder).encode().decode()) / b"\xff.png".decode("utf-8", "surrogateescape")).write_bytes(png(2))
    (folder / 'broken,\n"it".png').write_bytes(b"")
    (folder / "carriage\rreturn.png").write_bytes(b"")
    quarantine = tmp_path / "bad.csv"
    assert start(folder, tmp_path / "run", predictor, quarantine=quarantine).ok == 6
    keys = {Path(row["key"]).name for row in rows(tmp_path / "run")}
    assert keys == {
        *names[:-1],
        "\\\\xff.png",
        "\\xff.png",
        'broken,\n"it".png',
        "carriage\rreturn.png",
    }  # one key belongs to one name
    with quarantine.open(newline="") as file:
        assert [Path(line["key"]).name for line in csv.DictReader(file)] == [
            'broken,\n"it".png',
            "carriage\rreturn.png",
        ]


def test_quarantine_names_the_bad(images: Path, predictor: Predictor, tmp_path: Path) -> None:
    start(images, tmp_path / "run", predictor, quarantine=tmp_path / "bad.csv")
    with (tmp_path / "bad.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {(Path(line["key"]).name, line["status"]) for line in lines} == {
        ("5 empty.png", "empty"), ("7 cut.png", "corrupt_image"), ("8 text.jpg", "unsupported_format"),
        ("9 gone.png", "not_found"),
    }  # fmt: skip
    assert all(line["message"] for line in lines)


def test_images_that_kill_or_hang_their_process_cost_a_row_each(
    images: Path, whole: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = {"3.png": "segv", "4.png": "exit", "20.png": "exit", "30.png": "hang"}
    read = manifest._source

    def hostile(key: str, *cells: Any) -> Source:
        fault = faults.get(Path(key).name)
        return read(key, *cells) if fault is None else FaultySource(key, str(tmp_path / "touched"), fault=fault)

    monkeypatch.setattr(manifest, "_source", hostile)
    start(images, tmp_path / "run", predictor, processes=2, timeout=6.0)
    expected = {row["key"]: row for row in rows(whole)}
    for row in rows(tmp_path / "run"):
        fault = faults.get(Path(row["key"]).name)
        if fault is None:
            other = expected[row["key"]]
            for name in ("embedding", "top_probability"):  # of its own image, in batches that have one image less
                seen, wanted = (np.array(one.pop(name) or 0, np.float32) for one in (row, other))
                np.testing.assert_allclose(seen, wanted, atol=1e-3)
            assert row == other
        else:
            assert row["status"] == ("timeout" if fault == "hang" else "decoder_crashed")
            assert row["embedding"] is None


def test_an_image_that_the_model_gives_nan_for_is_an_error(
    images: Path, whole: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [row["key"] for row in rows(whole) if row["status"] == "ok"]
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


def test_odd_and_broken_files_between_photographs(shared_data: Path, predictor: Predictor, tmp_path: Path) -> None:
    """All 647 of them and 60 photographs: each has the status and the size that decoding it alone has."""
    with tarfile.open(shared_data / "odd-images.tar.gz") as archive:
        archive.extractall(tmp_path / "images", filter="data")
    with tarfile.open(shared_data / "photos.tar") as archive:
        for member in [one for one in archive if one.name.endswith(".jpg")][:60]:
            archive.extract(member, tmp_path / "images", filter="data")
    listed = sorted(str(path) for path in (tmp_path / "images").rglob("*") if path.is_file())
    summary = run(["-"], tmp_path / "run", predictor, stdin=listed, processes=2)
    found = rows(tmp_path / "run")
    assert [row["key"] for row in found] == listed
    assert Counter(row["status"] for row in found) == {"ok": summary.ok, **summary.errors}
    assert summary.ok > 200
    assert sum(summary.errors.values()) > 200
    for row in found:
        try:
            height, width, _ = decode(row["key"]).shape
            alone = ("ok", width, height)
        except ImageError as error:
            alone = (error.code, row["width"], row["height"])
        if row["status"] == "too_elongated":  # which decoding alone does not ask
            continue
        assert (row["status"], row["width"], row["height"]) == alone, row["key"]


def test_what_cannot_be_is_refused_before_anything_is_written(
    images: Path, predictor: Predictor, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="named more than once"):
        run([str(images), str(images / "a")], tmp_path / "run", predictor)
    assert not (tmp_path / "run" / manifest.RUN).exists()
    with pytest.raises(UsageError, match="no inputs"):
        run(["-"], tmp_path / "run", predictor, stdin=[])
    with pytest.raises(UsageError, match="dtype"):
        start(images, tmp_path / "run", predictor, dtype="int8")
    for name, told in (("bad.txt", "cannot write"), ("absent/bad.csv", "no folder")):
        with pytest.raises(UsageError, match=told):
            start(images, tmp_path / "run", predictor, quarantine=tmp_path / name)


def test_a_listing_that_is_not_the_one_written_is_refused(images: Path, predictor: Predictor, tmp_path: Path) -> None:
    start(images, tmp_path / "run", predictor)
    path = tmp_path / "run" / manifest.MANIFEST
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match="is not the listing") as caught:
        start(images, tmp_path / "run", predictor)
    assert caught.value.code == "damaged_run"


def test_a_shard_that_is_not_in_the_ledger_is_made_again(
    images: Path, whole: Path, predictor: Predictor, tmp_path: Path
) -> None:
    """As after a kill between the rename and the entry."""
    start(images, tmp_path / "run", predictor)
    with Ledger(tmp_path / "run") as ledger:
        ledger.forget([2, 6])
    (tmp_path / "run" / "shards" / "shard-00000002.parquet").write_bytes(b"half")
    start(images, tmp_path / "run", predictor)
    assert contents(tmp_path / "run") == contents(whole)


def test_the_figures_for_prometheus_go_where_any_result_goes(tmp_path: Path) -> None:
    """A link stays, a device is written to, and a folder is refused."""
    target = tmp_path / "target.prom"
    target.write_text("old")
    (tmp_path / "link.prom").symlink_to(target)
    figures = progress.PrometheusFile(tmp_path / "link.prom")
    figures(dict(of=9, rows_done=4, images_per_second=2.0, share=None, errors_so_far={"empty": 1}))
    figures.write()
    assert (tmp_path / "link.prom").is_symlink()
    assert 'tessella_run_errors{code="empty"} 1.0' in target.read_text().splitlines()
    progress.PrometheusFile(Path("/dev/null"))
    for path in (Path("/dev/full"), tmp_path, tmp_path / "absent" / "run.prom"):
        with pytest.raises(OutputError, match="could not be written") as caught:
            progress.PrometheusFile(path)
        assert caught.value.code == "output_failed"
    assert Path("/dev/full").is_char_device()


def test_progress_tells_no_time_left_before_it_knows_a_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 20.0, 40.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    event: dict[str, Any] = dict(kind="batch", share=None, errors_so_far={}, of=400_000, rows_done=0)
    watch = progress.RunWatcher()
    for rate in (None, None, 4.0):
        watch(event | dict(images_per_second=rate))
    assert capsys.readouterr().err.splitlines() == [
        "0 of 400,000, 0.0 images/s",
        "0 of 400,000, 1 day, 3:46:40 left, 4.0 images/s",
    ]
