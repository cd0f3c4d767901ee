"""The index of a run matches its shards after updates, damage and kills."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessella.bulk.ledger import Shard
from tessella.bulk.run_folder import RUN, SEAL_KEY, read_run, read_shard, write_facts
from tessella.errors import OutputError, UsageError
from tessella.search import index as index_module
from tessella.search.duplicates import dedup
from tessella.search.index import build_index, check_index, open_table
from tessella.search.query import Index
from tessella.storage import sealed_bytes

from ..bulk.runs import Image, drop_shard, expected_rows, indexed, numbered, random_vectors, write_run, write_shard

pytest.importorskip("lancedb")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three shards of 100 rows, five of which are errors."""
    images = numbered(random_vectors(300, 0))
    for i in (3, 107, 150, 203, 299):
        images[i].error = "corrupt_image"
    return write_run(tmp_path / "run", images)


# --- building ---------------------------------------------------------------------------------------------------------


def test_every_ok_row_is_indexed_as_in_the_shards(run: Path) -> None:
    messages: list[str] = []
    report = build_index(run, log=messages.append)
    assert indexed(run) == expected_rows(run)
    assert (report.rows, report.added, report.removed, report.rebuilt) == (295, 295, 0, "")
    assert report.bytes == sum(
        path.stat().st_size
        for path in (run / "index").rglob("*.*")
        if path.is_file() and path.name not in (index_module.SEAL, index_module.HINT, ".lock")
    )
    assert messages[-1] == "searches are exact, all rows are compared: there are fewer than 50,000 rows"
    assert check_index(run) == []


@pytest.mark.parametrize("facts", [dict(dtype="float32"), dict(top=0)])
def test_other_kinds_of_runs(tmp_path: Path, facts: dict[str, Any]) -> None:
    run = write_run(tmp_path / "run", numbered(random_vectors(30, 0)), **facts)
    build_index(run)
    assert indexed(run) == expected_rows(run)


def test_a_run_with_only_errors_has_an_index(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [Image("a", random_vectors(1, 0)[0], error="empty")])
    assert build_index(run).rows == build_index(run).rows == 0
    assert indexed(run) == {}


def test_an_image_with_a_nan_embedding_is_not_indexed(tmp_path: Path) -> None:
    images = numbered(random_vectors(20, 0))
    images[3].vector = np.full(16, np.nan)
    run = write_run(tmp_path / "run", images)
    assert build_index(run).rows == build_index(run).rows == 19
    assert indexed(run) == {key: row for key, row in expected_rows(run).items() if key != "000003.jpg"}


def test_an_update_adds_new_shards_and_removes_those_that_are_gone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def counted(out: Path, shard: Shard) -> Any:
        read.append(shard.id)
        return read_shard(out, shard)

    monkeypatch.setattr(index_module, "read_shard", counted)
    build_index(run)
    before = {path: path.read_bytes() for path in (run / "index").rglob("*") if path.is_file()}
    assert build_index(run).added == 0
    assert read == [0, 1, 2]
    assert before == {path: path.read_bytes() for path in (run / "index").rglob("*") if path.is_file()}
    write_shard(run, 3, numbered(random_vectors(50, 30), 300))
    write_shard(run, 1, numbered(random_vectors(100, 31), 100))
    drop_shard(run, 2)
    report = build_index(run)
    assert read == [0, 1, 2, 1, 3]
    assert (report.added, report.removed, report.rows) == (150, 98 + 98, 99 + 150)
    assert indexed(run).keys() == {f"{i:06d}.jpg" for i in (*range(200), *range(300, 350)) if i != 3}
    assert check_index(run) == []


def test_a_shard_in_another_place_is_another_shard(tmp_path: Path) -> None:
    """As if a listing had grown by one shard at its beginning: rows are identified by their position."""
    new, old = numbered(random_vectors(100, 1), 500), numbered(random_vectors(100, 0))
    run = write_run(tmp_path / "run", old)
    build_index(run)
    write_run(tmp_path / "grown", [*new, *old])
    shutil.copytree(run / "index", tmp_path / "grown" / "index")
    assert build_index(tmp_path / "grown").added == 200
    assert indexed(tmp_path / "grown") == expected_rows(tmp_path / "grown")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def largest(run: Path) -> Path:
    return max((run / "index/rows.lance/data").iterdir(), key=lambda path: path.stat().st_size)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "bit": lambda run: flip(largest(run)),
    "cut": lambda run: largest(run).write_bytes(largest(run).read_bytes()[:-1]),
    "gone": lambda run: largest(run).unlink(),
    "zeroed": lambda run: next((run / "index/rows.lance/_versions").glob("*.manifest")).write_bytes(b""),
    "seal": lambda run: flip(run / "index/index.json"),
    "no seal": lambda run: (run / "index/index.json").unlink(),
    "no table": lambda run: shutil.rmtree(run / "index/rows.lance"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_index_is_detected_and_rebuilt(run: Path, kind: str) -> None:
    build_index(run)
    DAMAGE[kind](run)
    assert check_index(run)
    with pytest.raises(UsageError, match="tessella index") as caught:
        open_table(run / "index", read_run(run))
    assert caught.value.code == "damaged_run"
    messages: list[str] = []
    report = build_index(run, log=messages.append)
    assert report.rebuilt
    assert messages[0] == f"the index is rebuilt: {report.rebuilt}"
    assert indexed(run) == expected_rows(run)
    assert check_index(run) == []


def test_an_index_of_another_fingerprint_is_rebuilt(run: Path, tmp_path: Path) -> None:
    build_index(run)
    other = write_run(tmp_path / "other", numbered(random_vectors(5, 9)), fingerprint="f" * 16)
    shutil.copytree(run / "index", other / "index")
    with pytest.raises(UsageError, match="fingerprint is 0123456789abcdef, that of the run is ffffffffffffffff"):
        open_table(other / "index", read_run(other))
    assert "0123456789abcdef" in build_index(other).rebuilt
    assert indexed(other) == expected_rows(other)


def test_a_damaged_shard_is_refused_and_the_index_is_unchanged(run: Path) -> None:
    build_index(run)
    before = indexed(run)
    write_shard(run, 3, numbered(random_vectors(9, 5), 300))
    flip(run / "shards" / "shard-00000003.parquet")
    with pytest.raises(UsageError, match="verify-run") as caught:
        build_index(run)
    assert caught.value.code == "damaged_run"
    assert indexed(run) == before
    (run / "shards" / "shard-00000003.parquet").unlink()
    with pytest.raises(UsageError):
        build_index(run)


@pytest.mark.parametrize(
    "changed",
    [
        dict(width=None),
        dict(width=-1),
        dict(width=10**11),
        dict(width="16"),
        dict(shard_rows={}),
        dict(shard_rows=0),
        dict(top=-1),
        dict(labels="cat"),
        dict(fingerprint=5),
        dict(dtype="int8"),
    ],
)
def test_a_run_json_with_other_facts_and_the_right_hash_is_refused(run: Path, changed: dict[str, Any]) -> None:
    facts = json.loads((run / RUN).read_text())
    facts.pop(SEAL_KEY)
    write_facts(run / RUN, facts | changed)
    with pytest.raises(UsageError, match=rf"run\.json is not the file of a run: .*{next(iter(changed))}") as caught:
        build_index(run)
    assert caught.value.code == "damaged_run"
    del facts[next(iter(changed))]
    write_facts(run / RUN, facts)
    with pytest.raises(UsageError, match="missing required field") as caught:
        build_index(run)
    assert caught.value.code == "damaged_run"


def test_a_run_json_with_another_width_and_the_right_hash_is_refused(run: Path) -> None:
    build_index(run)
    facts = json.loads((run / RUN).read_text())
    facts.pop(SEAL_KEY)

    def rebuild() -> None:
        shutil.rmtree(run / "index", ignore_errors=True)
        build_index(run)

    calls: list[Callable[[], object]] = [lambda: dedup(run), lambda: Index(run).query("000001.jpg"), rebuild]
    for width in (8, 12, 32):
        write_facts(run / RUN, facts | dict(width=width))
        for call in calls:
            with pytest.raises(UsageError, match=rf"have 16 numbers, run\.json says {width}") as caught:
                call()
            assert caught.value.code == "damaged_run"
        write_facts(run / RUN, facts)
        build_index(run)


@pytest.mark.parametrize(
    "changed",
    [
        dict(rows="295"),
        dict(version=None),
        dict(plan={"probes": "1"}),
        dict(shards=[]),
        dict(files={"rows.lance/x": "1a"}),
        dict(format=2),
    ],
)
def test_a_seal_with_other_types_and_the_right_hash_is_damaged(run: Path, changed: dict[str, Any]) -> None:
    build_index(run)
    path = run / "index" / index_module.SEAL
    values = json.loads(path.read_text())
    values.pop(index_module.SEAL_KEY)
    path.write_bytes(sealed_bytes(values | changed, index_module.SEAL_KEY))
    assert check_index(run) == [index_module.SEAL]
    with pytest.raises(UsageError, match="its seal is damaged"):
        Index(run)
    assert "its seal is damaged" in build_index(run).rebuilt
    assert indexed(run) == expected_rows(run)


def test_a_missing_run_or_index_is_reported(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UsageError, match="holds no run") as caught:
        build_index(tmp_path)
    assert caught.value.code == "not_found"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with pytest.raises(UsageError, match="has no index"):
        check_index(run)


def test_a_second_builder_is_refused(run: Path) -> None:
    refused: list[str] = []

    def second(text: str) -> None:
        with pytest.raises(UsageError) as caught:
            build_index(run)
        refused.append(caught.value.code)

    build_index(run, log=second)
    assert set(refused) == {"busy"}
    assert indexed(run) == expected_rows(run)


def test_a_full_disk_is_reported_and_the_index_is_unchanged(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    build_index(run)
    before = indexed(run)
    write_shard(run, 3, numbered(random_vectors(9, 5), 300))
    monkeypatch.setattr(index_module, "choose_plan", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        build_index(run)
    assert caught.value.code == "output_failed"
    assert indexed(run) == before
    monkeypatch.undo()
    assert build_index(run).rebuilt == ""
    assert indexed(run) == expected_rows(run)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", ["_rows", "choose_plan", "_sync_files", "_write_seal"])
def test_after_a_stop_at_any_step_the_next_builder_finishes(
    run: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    def stopped() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(index_module, step, killed)
            with pytest.raises(Killed):
                build_index(run)

    stopped()
    assert "unfinished" in build_index(run).rebuilt
    assert indexed(run) == expected_rows(run)
    write_shard(run, 1, numbered(random_vectors(100, 31), 100))
    write_shard(run, 3, numbered(random_vectors(50, 30), 300))
    stopped()
    report = build_index(run)
    if step in ("_rows", "choose_plan"):  # until old files are removed, the index is the old one
        assert (report.rebuilt, report.added) == ("", 150)
    assert indexed(run) == expected_rows(run)
    assert check_index(run) == []


BUILDER = """
import os, sys, warnings
from pathlib import Path
from tessella.search import index
warnings.simplefilter("ignore")  # LanceDB's on forks: in this process nothing of it is at work
index.STEP_ROWS = 100
index.import_lancedb()
for _ in sys.stdin:
    child = os.fork()
    if not child:
        index.build_index(Path(sys.argv[1]))
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_after_random_kills_the_index_matches_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight real kills; some builders continue with what the previous one left."""
    run = write_run(tmp_path / "run", numbered(random_vectors(3_000, 0)))
    monkeypatch.setattr(index_module, "STEP_ROWS", 100)
    duration = build_index(run).seconds
    shutil.rmtree(run / "index")
    rng = random.Random(0)
    kills = ends = 0
    command = [sys.executable, "-c", BUILDER, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as builders:
        assert builders.stdin is not None
        assert builders.stdout is not None
        while kills < 8:
            print(file=builders.stdin, flush=True)
            child = int(builders.stdout.readline())
            time.sleep(rng.uniform(0, duration))
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            code = int(builders.stdout.readline())
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
            if code and kills % 3:
                continue
            ends += 1
            duration *= 1 if code else 0.8  # it had ended before: the next one is killed sooner
            build_index(run)
            assert indexed(run) == expected_rows(run)
            assert check_index(run) == []
            if ends % 2:  # what the next one is to do
                shutil.rmtree(run / "index")
            for number in range(15):
                write_shard(run, number, numbered(random_vectors(100, 20 * ends + number), number * 100))
        builders.stdin.close()
    assert ends >= 2


def test_importing_is_cheap_and_a_missing_lancedb_is_reported() -> None:
    code = """
import json, sys
from tessella.search import duplicates as dedup, index, query as search
print(json.dumps([name for name in ("lancedb", "torch", "matplotlib", "pyarrow") if name in sys.modules]))
sys.modules["lancedb"] = None
try: index.import_lancedb()
except Exception as error: print(json.dumps([error.code, error.hint]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, refused = map(json.loads, done.stdout.splitlines())
    assert loaded == []
    assert refused == ["missing_dependency", "pip install lancedb"]
