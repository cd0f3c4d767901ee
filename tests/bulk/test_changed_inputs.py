"""Inputs that change during a run or between two calls: no row gets the pixels of another image."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tessella
from tessella.bulk import RunEvent, RunProgress, RunSettings, ShardFinished, read_rows, run
from tessella.bulk.events import OnEvent
from tessella.bulk.manifest import MANIFEST, Manifest, write_manifest
from tessella.errors import RunError, UsageError
from tessella.predictor import Predictor
from tessella.search.duplicates import dedup, draw_duplicates
from tessella.storage import file_hash

COUNT = 24


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tessella.load(engine="eager", batch_size=4, device="cpu")


def bmp(seed: int) -> bytes:
    """Return an image file; all have the same size."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(buffer, "BMP")
    return buffer.getvalue()


def write_tar(path: Path, names: Sequence[int], images: Sequence[int]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, image in zip(names, images, strict=True):
            member = tarfile.TarInfo(f"{name:03d}.bmp")
            member.size = len(bmp(image))
            archive.addfile(member, io.BytesIO(bmp(image)))


def write_parquet(path: Path, images: Sequence[int]) -> None:
    pq.write_table(pa.table(dict(image=[bmp(image) for image in images])), path, row_group_size=10,
                   compression="none", use_dictionary=False)  # fmt: skip


ORDER, BACK = list(range(COUNT)), list(reversed(range(COUNT)))


def make(folder: Path, kind: str) -> Path:
    path = folder / f"data.{kind}"
    if kind == "folder":
        path.mkdir()
        for i in ORDER:
            (path / f"{i:03d}.bmp").write_bytes(bmp(i))
    elif kind == "tar":
        write_tar(path, ORDER, ORDER)
    else:
        write_parquet(path, ORDER)
    return path


def keep_time(path: Path, change: Callable[[], object]) -> None:
    """Change a file without changing its size or modification time."""
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def stop_after(shard: int) -> OnEvent:
    def stop(event: RunEvent) -> None:
        if isinstance(event, ShardFinished) and event.shard.id == shard:
            signal.raise_signal(signal.SIGTERM)

    return stop


def start_and_stop(data: Path, out: Path, predictor: Predictor, on_event: OnEvent) -> None:
    with pytest.raises(RunError):
        run([str(data)], out, predictor, RunSettings(shard_rows=4, processes=1), on_event=on_event)


def resume(data: Path, out: Path, predictor: Predictor) -> list[dict[str, Any]]:
    run([str(data)], out, predictor, RunSettings(shard_rows=4, processes=1))
    return [row for table in read_rows(out) for row in table.to_pylist()]


CHANGES: dict[str, tuple[str, Callable[[Path], object], bool, str]] = {  # kind, change, keep the time, message
    "other order": ("tar", lambda path: write_tar(path, BACK, BACK), True, "was"),
    "other order, new time": ("tar", lambda path: write_tar(path, BACK, BACK), False, "last modified"),
    "other images of the same names": ("tar", lambda path: write_tar(path, ORDER, BACK), True, "is another image"),
    "fewer": ("tar", lambda path: write_tar(path, ORDER[:3], ORDER[:3]), False, "bytes"),
    "gone": ("tar", lambda path: path.unlink(), False, "it no longer exists"),
    "rows in another order": ("parquet", lambda path: write_parquet(path, BACK), True, "footer|is another image"),
    "rows in another order, new time": ("parquet", lambda path: write_parquet(path, BACK), False, "last modified"),
    "more rows": ("parquet", lambda path: write_parquet(path, [*ORDER, 99]), False, "bytes"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_container_changed_between_two_calls_is_refused(predictor: Predictor, tmp_path: Path, name: str) -> None:
    kind, change, keep, message = CHANGES[name]
    data = make(tmp_path, kind)
    os.utime(data, ns=(1, 1))  # an earlier time than that of any change
    start_and_stop(data, tmp_path / "run", predictor, stop_after(1))
    before = sorted((tmp_path / "run" / "shards").iterdir())
    if keep:
        keep_time(data, lambda: change(data))
    else:
        change(data)
    with pytest.raises(UsageError, match=message) as caught:
        resume(data, tmp_path / "run", predictor)
    assert caught.value.code == "changed_run"
    assert str(data) in caught.value.message
    assert sorted((tmp_path / "run" / "shards").iterdir()) == before


@pytest.mark.parametrize("kind", ["tar", "parquet", "folder"])
def test_a_run_with_unchanged_inputs_is_resumed(predictor: Predictor, tmp_path: Path, kind: str) -> None:
    """Even if a backup has made a hard link, or a container that is no longer needed has changed."""
    data = make(tmp_path, kind)
    start_and_stop(data, tmp_path / "run", predictor, stop_after(1))
    if kind != "folder":
        (tmp_path / "backup").hardlink_to(data)
    assert Counter(row["status"] for row in resume(data, tmp_path / "run", predictor)) == {"ok": COUNT}
    if kind == "tar":
        write_tar(data, BACK, BACK)
        assert len(resume(data, tmp_path / "run", predictor)) == COUNT  # nothing is read from it any more


def test_a_changed_container_is_refused_even_without_finished_shards(predictor: Predictor, tmp_path: Path) -> None:
    data = make(tmp_path, "tar")

    def stop(event: RunEvent) -> None:
        if isinstance(event, RunProgress):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([str(data)], tmp_path / "run", predictor, RunSettings(shard_rows=4, processes=1), on_event=stop)
    keep_time(data, lambda: write_tar(data, BACK, BACK))
    with pytest.raises(UsageError) as caught:
        resume(data, tmp_path / "run", predictor)
    assert caught.value.code == "changed_run"


def test_a_changed_file_becomes_an_error_row(predictor: Predictor, tmp_path: Path) -> None:
    data = make(tmp_path, "folder")
    start_and_stop(data, tmp_path / "run", predictor, stop_after(1))
    (data / "000.bmp").write_bytes(bmp(99))  # its row is finished
    (data / "020.bmp").write_bytes(bmp(99))
    (data / "021.bmp").write_bytes(b"no image, and shorter")
    (data / "022.bmp").unlink()
    rows = {Path(row["key"]).name: row for row in resume(data, tmp_path / "run", predictor)}
    assert {name: row["status"] for name, row in rows.items() if row["status"] != "ok"} == {
        "020.bmp": "changed_input", "021.bmp": "changed_input", "022.bmp": "not_found",
    }  # fmt: skip
    assert "is not the file that was listed" in rows["020.bmp"]["message"]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("after", [0, 200])
@pytest.mark.parametrize("how", ["new time", "same time", "renamed into place, same time"])
def test_a_container_rewritten_during_the_run(
    predictor: Predictor, tmp_path: Path, kind: str, after: int, how: str
) -> None:
    """Rows read before are correct, all others report the change; none has the pixels of another image."""
    data, order = tmp_path / f"data.{kind}", list(range(600))

    def write(images: list[int]) -> None:
        write_tar(data, images, images) if kind == "tar" else write_parquet(data, images)

    write(order)
    names = [hashlib.sha256(bmp(image)).hexdigest() for image in order]
    changed = False

    def change(event: RunEvent) -> None:
        nonlocal changed
        if not changed and isinstance(event, RunProgress) and event.rows_done >= after:
            changed = True
            before = data.stat()
            if how.startswith("renamed"):
                data.rename(tmp_path / "old")
            write(order[::-1])
            if how != "new time":
                os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))

    run([str(data)], tmp_path / "run", predictor, RunSettings(shard_rows=40, processes=1), on_event=change)
    rows = [row for table in read_rows(tmp_path / "run") for row in table.to_pylist()]
    statuses = Counter(row["status"] for row in rows)
    assert statuses["changed_input"] > 0
    assert statuses["ok"] >= after
    assert statuses.total() == statuses["ok"] + statuses["changed_input"] == 600
    assert all(row["sha256"] == names[i] for i, row in enumerate(rows) if row["status"] == "ok")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_hard_link_made_during_the_run_is_no_change(
    predictor: Predictor, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(tmp_path, kind)

    def link(event: RunEvent) -> None:
        if isinstance(event, RunProgress) and not (tmp_path / "backup").exists():
            (tmp_path / "backup").hardlink_to(data)

    monkeypatch.chdir(tmp_path)
    run([data.name], tmp_path / "run", predictor, RunSettings(shard_rows=4, processes=1), on_event=link)
    rows = [row for table in read_rows(tmp_path / "run") for row in table.to_pylist()]
    assert Counter(row["status"] for row in rows) == {"ok": COUNT}


def test_a_contact_sheet_marks_changed_files(predictor: Predictor, tmp_path: Path) -> None:
    data = make(tmp_path, "folder")
    for name in ("a.bmp", "b.bmp"):
        (data / name).write_bytes(bmp(5))
    resume(data, tmp_path / "run", predictor)
    (data / "a.bmp").write_bytes(bmp(6) + b"longer")
    duplicates = dedup(tmp_path / "run", threshold=None)
    draw_duplicates(tmp_path / "run", duplicates, tmp_path / "pairs.html")
    assert (tmp_path / "pairs.html").read_text().count("no picture: changed_input") == 1


def test_listings_of_earlier_versions_are_read(tmp_path: Path) -> None:
    from tessella.data.sources import iter_sources

    data = make(tmp_path, "tar")
    write_manifest(tmp_path / MANIFEST, iter_sources([str(data)]), 10)
    table = pq.read_table(tmp_path / MANIFEST)
    assert table["file_size"].to_pylist() == [data.stat().st_size] * COUNT
    pq.write_table(table.drop_columns(["file_size", "mtime", "digest", "ctime"]), tmp_path / "old", row_group_size=10)
    old = Manifest(tmp_path / "old", file_hash(tmp_path / "old"))
    assert [source.read() for source in old.sources(1)] == [bmp(i) for i in range(10, 20)]
    old.require_unchanged([0, 1, 2], [])
