"""Damage to any file of a run is found; repaired files are as before, and lost rows are named."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import random
import shlex
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tessella
from tessella.bulk import IntegrityReport, RunSettings, ledger, manifest, read_rows, repair, run, run_folder, verify
from tessella.bulk.integrity import UNSEALED_SUMMARY_KEYS
from tessella.bulk.ledger import Ledger
from tessella.bulk.manifest import Manifest
from tessella.errors import OutputError, UsageError
from tessella.predictor import Predictor
from tessella.search import Index
from tessella.search.duplicates import dedup
from tessella.search.index import HINT, build_index
from tessella.storage import folder_lock, sealed_bytes, shared_lock

from .bulk_kills import contents, make_rows
from .faults import Points, reaching

ROWS, SHARD = 100, 8
SHARDS = -(-ROWS // SHARD)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tessella.load(engine="eager", batch_size=4, device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rows(tmp_path_factory.mktemp("data") / "rows.parquet", ROWS)


@pytest.fixture(scope="module")
def intact(data: Path, predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "intact"
    resume(data, out, predictor)
    return out


@pytest.fixture
def copy(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "copy"))


def resume(data: Path, out: Path, predictor: Predictor) -> None:
    run([str(data)], out, predictor, RunSettings(shard_rows=SHARD, processes=1))


def entries(out: Path) -> dict[int, ledger.Shard]:
    with Ledger(out) as opened:
        return opened.finished()


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.choice([i for i, byte in enumerate(data) if byte])] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def blank(path: Path, rng: random.Random) -> None:
    """Replace the end of a file with zeros, as a power cut does that comes before the data is written."""
    size = path.stat().st_size
    start = rng.randrange(size * 3 // 4)
    path.write_bytes(path.read_bytes()[:start] + bytes(size - start))


DAMAGES = (flip, truncate, delete, blank)
FILES = ("run.json", "copy/run.json", "manifest.parquet", "copy/manifest.parquet", "shards/shard-00000000.parquet",
         "shards/shard-00000007.parquet", "shards/shard-00000012.parquet")  # fmt: skip


def test_an_intact_run_has_no_damage(intact: Path) -> None:
    assert verify(intact) == IntegrityReport(ROWS, SHARDS, SHARDS, ())
    assert repair(intact) == IntegrityReport(ROWS, SHARDS, SHARDS, ())


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_all_damage_is_found_and_repaired(
    intact: Path, copy: Path, data: Path, predictor: Predictor, name: str, damage: Callable[..., None]
) -> None:
    """6 cases each; more than 200 together with those below."""
    rng = random.Random(f"{name} {damage.__name__}")
    for _ in range(1 if damage is delete else 6):
        (copy / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(intact / name, copy / name)
        damage(copy / name, rng)
        if (copy / name).exists() and (copy / name).read_bytes() == (intact / name).read_bytes():
            continue
        report = verify(copy)
        assert [item.file for item in report.damage] == [name]
        assert repair(copy) == report
        assert not verify(copy).damage
        lost = [item for item in report.damage if item.shard is not None]
        if not lost:
            continue
        (shard,) = lost
        assert not (copy / name).exists()
        keys = [source.key for source in Manifest(copy / manifest.MANIFEST, json.loads(
            (copy / run_folder.RUN).read_text())["manifest"]).sources(shard.shard or 0)]  # fmt: skip
        assert (shard.first, shard.rows) == ((shard.shard or 0) * SHARD, len(keys))
        assert (shard.first_key, shard.last_key) == (keys[0], keys[-1])
        assert verify(copy).finished == SHARDS - 1
        with Ledger(copy) as opened:
            opened.commit(entries(intact)[shard.shard or 0])
    if name.startswith("shards"):
        with Ledger(copy) as opened:
            opened.forget([int(name[13:21])])
    resume(data, copy, predictor)
    assert contents(copy) == contents(intact)
    assert not verify(copy).damage


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger_is_rebuilt_from_the_log(intact: Path, copy: Path, damage: Callable[..., None]) -> None:
    """A flipped bit that SQLite does not use, such as one in a counter, may make no difference."""
    rng = random.Random(damage.__name__)
    detected = 0
    for _ in range(1 if damage is delete else 12):
        shutil.copyfile(intact / ledger.LEDGER, copy / ledger.LEDGER)
        damage(copy / ledger.LEDGER, rng)
        state = verify(copy)
        detected += bool(state.damage)
        assert {item.file for item in state.damage} <= {ledger.LEDGER}
        assert state.finished == SHARDS
        repair(copy)
        assert entries(copy) == entries(intact)
        assert not verify(copy).damage
    assert detected >= {flip: 4, truncate: 12, delete: 1, blank: 12}[damage]


def test_text_stored_as_a_blob_is_damage(intact: Path, copy: Path) -> None:
    """One flipped bit in the header of a row does this."""
    with Ledger(copy) as opened:
        opened._connection.execute("UPDATE shards SET file = CAST(file AS BLOB) WHERE id = 1")
    assert {item.file for item in verify(copy).damage} == {ledger.LEDGER}
    repair(copy)
    assert entries(copy) == entries(intact)
    assert not verify(copy).damage


@pytest.mark.parametrize("damage", DAMAGES)
def test_entries_lost_with_the_write_ahead_log_are_found(
    intact: Path, copy: Path, tmp_path: Path, damage: Callable[..., None]
) -> None:
    rng = random.Random(damage.__name__)
    with Ledger(copy, new=True) as opened:  # as a killed process leaves it: all entries are in the write-ahead log
        for shard in entries(intact).values():
            opened.commit(shard)
        before = Path(shutil.copytree(copy, tmp_path / "before"))
    assert (before / f"{ledger.LEDGER}-wal").stat().st_size > 10_000
    for i in range(1 if damage is delete else 6):
        out = Path(shutil.copytree(before, tmp_path / str(i)))
        damage(out / f"{ledger.LEDGER}-wal", rng)
        state = verify(out)
        repair(out)
        assert state.damage or damage is flip  # of a page that is written again later, only the last one counts
        assert {item.file for item in state.damage} <= {ledger.LEDGER}
        assert entries(out) == entries(intact)
        assert not verify(out).damage


def test_a_damaged_log_loses_nothing(intact: Path, copy: Path) -> None:
    lines = (copy / run_folder.LOG).read_bytes().splitlines(keepends=True)
    lines[3] = b'{"kind": "shard", "id": 3\n'
    (copy / run_folder.LOG).write_bytes(b"".join(lines))
    assert [(item.file, item.message) for item in verify(copy).damage] == [(run_folder.LOG, "line 4 cannot be read")]
    repair(copy)
    assert verify(copy) == IntegrityReport(ROWS, SHARDS, SHARDS, ())
    assert len((copy / run_folder.LOG).read_text().splitlines()) == SHARDS


@pytest.mark.parametrize(
    "change",
    [dict(rows=99), dict(ok=96), dict(ok=95, errors={}), dict(errors={"empty": 5}), dict(fingerprint="0" * 16)],
)
def test_a_summary_that_does_not_add_up(copy: Path, change: dict[str, Any]) -> None:
    summary = json.loads((copy / run_folder.SUMMARY).read_text())
    del summary[run_folder.SEAL_KEY]
    sealed = sealed_bytes(summary | change, run_folder.SEAL_KEY).decode()
    for text in (sealed, json.dumps(summary | change), "{}", "[]", "", json.dumps(summary)[:-5]):
        (copy / run_folder.SUMMARY).write_text(text)
        assert [item.file for item in verify(copy).damage] == [run_folder.SUMMARY]
    repair(copy)
    assert not (copy / run_folder.SUMMARY).exists()  # the next run writes it


def test_a_summary_with_a_number_that_no_float_can_hold(copy: Path) -> None:
    """Its counts are added only if they cannot be compared with those of all shards."""
    (copy / "shards" / "shard-00000000.parquet").unlink()
    summary = json.loads((copy / run_folder.SUMMARY).read_text()) | dict(ok=10**400, errors={"empty": 0.5})
    del summary[run_folder.SEAL_KEY]
    (copy / run_folder.SUMMARY).write_bytes(sealed_bytes(summary, run_folder.SEAL_KEY))
    assert run_folder.SUMMARY in [item.file for item in verify(copy).damage]


@pytest.mark.parametrize("files", [None, [1], {"rows.lance": 5}, "text"])
def test_a_seal_of_an_index_without_files_is_damage(copy: Path, files: object) -> None:
    (copy / "index").mkdir()
    (copy / "index" / "index.json").write_bytes(sealed_bytes({"files": files}, "sha256"))
    assert [item.file for item in verify(copy).damage] == ["index/index.json"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_found_and_rebuilt(copy: Path, damage: Callable[..., None]) -> None:
    rng = random.Random(damage.__name__)
    build_index(copy)
    assert not verify(copy).damage
    backup = Path(shutil.copytree(copy / "index", copy.parent / "backup"))
    files = [path for path in sorted(backup.rglob("*")) if path.is_file() and path.stat().st_size]
    for path in files:
        name = path.relative_to(backup)
        if name.name in (".lock", HINT):
            continue
        damage(copy / "index" / name, rng)
        assert [item.file for item in verify(copy).damage] == [f"index/{name}"]
        if path is not files[-1]:
            shutil.copyfile(path, copy / "index" / name)
    repair(copy)
    assert not (copy / "index").exists()
    assert not verify(copy).damage
    assert build_index(copy).rows == sum(shard.ok for shard in entries(copy).values())


def test_an_entry_with_wrong_counts_is_damage(intact: Path, copy: Path) -> None:
    with sqlite3.connect(copy / ledger.LEDGER) as connection:
        connection.execute("UPDATE shards SET rows = rows + 1 WHERE id = 4")
        connection.execute("UPDATE shards SET errors = '{}' WHERE id = 0")
    connection.close()
    assert {item.file for item in verify(copy).damage} == {ledger.LEDGER}
    repair(copy)
    assert entries(copy) == entries(intact)


@pytest.mark.parametrize("number", [-1, -(2**62), 2**62])
def test_an_entry_of_a_shard_outside_the_listing_is_damage(intact: Path, copy: Path, number: int) -> None:
    with Ledger(copy) as opened:
        opened.commit(dataclasses.replace(entries(copy)[0], id=number))
    assert number in {item.shard for item in verify(copy).damage}
    repair(copy)
    assert entries(copy) == entries(intact)


@pytest.mark.parametrize("name", ["run.json", "run.sqlite", "manifest.parquet", "log.jsonl", "copy/run.json"])
def test_a_pipe_in_place_of_a_file_is_damage(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    assert name in {item.file for item in verify(copy).damage}


def test_swapped_shards_are_found(intact: Path, copy: Path) -> None:
    """Both files are intact and match the ledger; only the keys in the listing differ."""
    for name in (run_folder.LOG, run_folder.SUMMARY):
        (copy / name).unlink()
    a, b = (entries(intact)[number] for number in (2, 3))
    with Ledger(copy) as opened:
        opened.forget([2, 3])
        for shard, other in ((a, b), (b, a)):
            shutil.copyfile(intact / "shards" / other.file, copy / "shards" / shard.file)
            opened.commit(ledger.Shard(**vars(other) | dict(id=shard.id, file=shard.file)))
    assert [(item.shard, item.message) for item in verify(copy).damage] == [
        (2, "has other keys than the listing"), (3, "has other keys than the listing"),
    ]  # fmt: skip


def test_damage_that_cannot_be_repaired_is_reported(copy: Path, data: Path, predictor: Predictor) -> None:
    for name in ("manifest.parquet", "copy/manifest.parquet"):
        (copy / name).unlink()
    assert [item.file for item in verify(copy).damage] == ["manifest.parquet", "copy/manifest.parquet"]
    with pytest.raises(UsageError, match="its copy are damaged") as caught:
        repair(copy)
    assert caught.value.code == "damaged_run"
    assert sum(len(table) for table in read_rows(copy)) == ROWS
    for name in ("run.json", "copy/run.json"):
        (copy / name).write_text("{}")
    for call in (verify, repair, lambda out: resume(data, out, predictor)):
        with pytest.raises(UsageError) as caught:
            call(copy)
        assert caught.value.code == "damaged_run"


def test_a_damaged_run_is_not_resumed(copy: Path, data: Path, predictor: Predictor) -> None:
    """Otherwise finished shards that a lost ledger does not list would silently be made again."""
    (copy / ledger.LEDGER).unlink()
    with pytest.raises(UsageError, match=r"run\.sqlite is missing") as caught:
        resume(data, copy, predictor)
    assert (caught.value.code, "verify-run" in caught.value.hint) == ("damaged_run", True)


def test_a_run_without_run_json_is_not_started_again(copy: Path, data: Path, predictor: Predictor) -> None:
    before = entries(copy)
    (copy / "run.json").unlink()
    with pytest.raises(UsageError) as caught:
        resume(data, copy, predictor)
    assert caught.value.code == "damaged_run"
    assert entries(copy) == before
    repair(copy)
    assert not verify(copy).damage


def test_an_unreadable_file_is_damaged(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bad sector, opening a file works but reading it fails."""
    bad = {"manifest.parquet", "log.jsonl", "shard-00000003.parquet"}
    read = Path.read_bytes

    def digest(path: Path) -> str:
        return hashlib.sha256(read_bytes(path)).hexdigest()

    def read_bytes(path: Path) -> bytes:
        if path.name in bad and path.parent != copy / "copy":
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(manifest, "file_hash", digest)
    monkeypatch.setattr("tessella.bulk.integrity.file_hash", digest)
    monkeypatch.setattr("tessella.bulk.integrity.read_regular", read_bytes)
    report = verify(copy)
    assert {Path(item.file).name for item in report.damage} == bad
    assert report.finished == SHARDS - 1


def files_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def damage_everything(out: Path) -> None:
    """Damage everything that a repair writes: run.json, the listing, log, ledger and summary; and lose a shard."""
    rng = random.Random(0)
    for name in ("run.json", "copy/manifest.parquet", "shards/shard-00000003.parquet"):
        flip(out / name, rng)
    for name in (run_folder.LOG, run_folder.SUMMARY):
        truncate(out / name, rng)
    with sqlite3.connect(out / ledger.LEDGER) as connection:
        connection.execute("UPDATE shards SET rows = rows + 1 WHERE id = 4")
    connection.close()


@pytest.mark.parametrize("kind", ["ENOSPC", "EIO"])
def test_a_repair_survives_a_failing_disk_at_any_call(intact: Path, tmp_path: Path, kind: str) -> None:
    """Nothing changes until everything is written; then every file is the old or the new one, and a repair resumes."""
    damaged = Path(shutil.copytree(intact, tmp_path / "damaged"))
    damage_everything(damaged)
    before = files_of(damaged)
    names = repair_reaching(Path(shutil.copytree(damaged, tmp_path / "names")), Points(tmp_path / "names"))
    assert len(names) >= 20
    first_change = next(at for at, name in enumerate(names) if name.startswith("replace"))
    assert first_change >= 12
    repaired = files_of(tmp_path / "names")
    for at in range(len(names)):
        out = Path(shutil.copytree(damaged, tmp_path / f"at {at}"))
        with pytest.raises(OutputError) as caught:
            repair_reaching(out, Points(out, at, kind))
        assert caught.value.code == "output_failed"
        after = files_of(out)
        assert at > first_change or after == before, names[at]
        assert all(data in (before.get(name), repaired.get(name)) for name, data in after.items()), names[at]
        repair(out)
        assert not verify(out).damage
        assert entries(out) == {number: shard for number, shard in entries(intact).items() if number != 3}


def repair_reaching(out: Path, points: Points) -> list[str]:
    with reaching(points):
        repair(out)
    return points.names


def test_verify_writes_nothing(intact: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with an index, or with a write-ahead log that a killed process has left."""
    with Ledger(copy, new=True) as opened:
        for shard in entries(intact).values():
            opened.commit(shard)
        killed = Path(shutil.copytree(copy, tmp_path / "killed"))
    (killed / run_folder.SUMMARY).unlink()
    (killed / f"{ledger.LEDGER}-shm").unlink()
    indexed = Path(shutil.copytree(intact, tmp_path / "indexed"))
    build_index(indexed)
    connect = sqlite3.connect

    def only_in_memory(path: str, **settings: Any) -> sqlite3.Connection:
        assert path == ":memory:"
        return connect(path, **settings)

    monkeypatch.setattr(sqlite3, "connect", only_in_memory)
    for out in (killed, indexed):
        before = {path: path.stat().st_mtime_ns for path in [out, *out.rglob("*")]}
        points = Points(out)
        with reaching(points):
            assert verify(out) == IntegrityReport(ROWS, SHARDS, SHARDS, ())
            assert sum(len(table) for table in read_rows(out)) == ROWS
            dedup(out)
        assert points.names == []
        assert {path: path.stat().st_mtime_ns for path in [out, *out.rglob("*")]} == before


def test_repair_on_read_only_media(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error only if there is damage."""

    def refuse(folder: Path) -> Any:
        raise OutputError("output_failed", f"{folder} could not be written: Read-only file system")

    monkeypatch.setattr("tessella.bulk.integrity.folder_lock", refuse)
    assert not repair(copy).damage
    (copy / "run.json").unlink()
    with pytest.raises(OutputError, match="Read-only"):
        repair(copy)


def test_readers_share_the_lock_and_exclude_writers(copy: Path) -> None:
    with shared_lock(copy):
        assert not verify(copy).damage
        with pytest.raises(UsageError) as caught:
            repair(copy)
    assert caught.value.code == "busy"


def test_shards_recorded_but_not_logged_are_logged_on_resume(copy: Path, data: Path, predictor: Predictor) -> None:
    lines = (copy / run_folder.LOG).read_bytes().splitlines(keepends=True)
    (copy / run_folder.LOG).write_bytes(b"".join(lines[:-2]))
    assert [item.file for item in verify(copy).damage] == [run_folder.LOG]
    (copy / run_folder.SUMMARY).unlink()
    assert not verify(copy).damage
    resume(data, copy, predictor)
    assert not verify(copy).damage
    assert len((copy / run_folder.LOG).read_bytes().splitlines()) == SHARDS


def test_runs_of_earlier_versions_are_intact(copy: Path) -> None:
    """Their logs and summaries have no hashes."""
    log = [json.loads(line) for line in (copy / run_folder.LOG).read_text().splitlines()]
    (copy / run_folder.LOG).write_text("".join(json.dumps(line | dict(check="0")) + "\n" for line in log))
    assert {item.file for item in verify(copy).damage} == {run_folder.LOG}
    for line in log:
        del line["check"]
    (copy / run_folder.LOG).write_text("".join(json.dumps(line) + "\n" for line in log[1:]))  # one that was not logged
    summary = json.loads((copy / run_folder.SUMMARY).read_text())
    (copy / run_folder.SUMMARY).write_text(json.dumps({name: summary[name] for name in UNSEALED_SUMMARY_KEYS}))
    assert not verify(copy).damage


@pytest.mark.parametrize(
    "change",
    [dict(id="0"), dict(id=[0]), dict(rows=None), dict(errors=[]), dict(errors={"corrupt": "1"}), "[" * 100_000],
)
def test_damaged_lines_in_the_log_of_an_earlier_version_are_found_and_repaired(
    change: dict[str, Any] | str, copy: Path, data: Path, predictor: Predictor
) -> None:
    """They have no hash."""
    log = copy / run_folder.LOG
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        del line["check"]
    damaged = change if isinstance(change, str) else json.dumps(lines[0] | change)
    log.write_text("".join(f"{line}\n" for line in [damaged, *map(json.dumps, lines[1:])]))
    assert run_folder.LOG in {item.file for item in verify(copy).damage}
    (copy / run_folder.SUMMARY).unlink()
    resume(data, copy, predictor)
    repair(copy)
    assert not verify(copy).damage


def test_hints_can_be_pasted_into_a_shell(copy: Path, tmp_path: Path) -> None:
    folder = copy.rename(tmp_path / "my photos; ls")
    (folder / "run.sqlite").write_bytes(b"")
    with pytest.raises(UsageError) as caught:
        next(read_rows(folder))
    assert shlex.split(caught.value.hint) == ["tessella", "verify-run", str(folder), "--repair"]
    with pytest.raises(UsageError) as caught:
        Index(folder)
    assert shlex.split(caught.value.hint) == ["tessella", "index", str(folder)]


def test_a_ledger_that_cannot_be_opened_is_closed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def connecting(*args: Any, **options: Any) -> sqlite3.Connection:
        opened.append(connect(*args, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", connecting)
    (copy / "run.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(UsageError):
        Ledger(copy)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")


def test_shards_are_not_overwritten_if_everything_else_is_lost(copy: Path, data: Path, predictor: Predictor) -> None:
    for name in ("run.json", "copy/run.json", "log.jsonl"):
        (copy / name).unlink()
    before = {path.name: path.stat().st_mtime_ns for path in (copy / "shards").iterdir()}
    for call in (verify, repair, lambda out: next(read_rows(out)), lambda out: resume(data, out, predictor)):
        with pytest.raises(UsageError) as caught:
            call(copy)
        assert caught.value.code == "damaged_run"
    assert {path.name: path.stat().st_mtime_ns for path in (copy / "shards").iterdir()} == before


def test_a_run_killed_while_listing_is_started_again(copy: Path, data: Path, predictor: Predictor) -> None:
    """Nothing is lost, and the same command starts it again."""
    for name in ("run.json", "copy/run.json", "log.jsonl"):
        (copy / name).unlink()
    for path in (copy / "shards").iterdir():
        path.unlink()
    with pytest.raises(UsageError) as caught:
        verify(copy)
    assert caught.value.code == "not_found"
    resume(data, copy, predictor)
    assert verify(copy).finished == SHARDS


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        for call in (verify, repair, lambda out: next(read_rows(out))):
            with pytest.raises(UsageError, match="holds no run") as caught:
                call(folder)
            assert caught.value.code == "not_found"
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_progress_is_not_verified(copy: Path) -> None:
    with folder_lock(copy), pytest.raises(UsageError) as caught:
        verify(copy)
    assert caught.value.code == "busy"
