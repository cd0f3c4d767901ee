"""A collection is opened again when its index was updated, and works in a few threads with a bounded queue."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessella.errors import ServeError, UsageError
from tessella.search import build_index
from tessella.serve import collection as module
from tessella.serve.collection import Collection, OpenedIndex
from tessella.serve.selection import Selection

from ..bulk.runs import drop_shard, numbered, random_vectors, write_run, write_shard

pytest.importorskip("lancedb")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "run", numbered(random_vectors(250, 0)))
    build_index(run, map="pca")
    return run


def rows(opened: OpenedIndex) -> int:
    return int(opened.mask(Selection()).sum())


def nearest(opened: OpenedIndex) -> list[int]:
    return [row.row for row in opened.index.search(opened.index.row_query(3), top=5)]


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_an_updated_index_is_opened_again(run: Path, memory: int) -> None:
    collection = Collection(run, memory=memory)
    before = collection.use(lambda opened: opened)
    assert collection.use(lambda opened: opened) is before
    drop_shard(run, 1)
    assert collection.use(rows) == 250
    build_index(run)
    after = collection.use(lambda opened: opened)
    assert rows(after) == 150
    assert after.version != before.version
    assert after.map is not None
    assert len(after.map.points) == 150
    assert after.map_bytes is not None
    points = np.frombuffer(after.map_bytes, "<f4").reshape(-1, 2)
    assert len(points) == 250
    assert np.isnan(points[100:200]).all()
    assert np.isfinite(points[:100]).all()


def test_work_that_meets_an_update_is_repeated(run: Path) -> None:
    collection = Collection(run, memory=0)
    versions = []

    def work(opened: OpenedIndex) -> list[int]:
        versions.append(opened.version)
        if len(versions) == 1:  # the old files are removed while it works
            write_shard(run, 2, numbered(random_vectors(50, 9), 200))
            build_index(run)
        return nearest(opened)

    found = collection.use(work)
    assert len({*versions}) == 2
    assert found == nearest(OpenedIndex(run, 0))


def test_files_that_are_being_replaced(run: Path) -> None:
    now = [0.0]
    collection = Collection(run, memory=0, clock=lambda: now[0])
    assert collection.use(nearest)
    kept = run.with_name("kept")
    shutil.copytree(run / "index", kept)
    for path in (run / "index" / "rows.lance" / "data").iterdir():
        path.unlink()
    for _ in range(2):  # the second time without reading all files again
        with pytest.raises(ServeError) as caught:
            collection.use(nearest)
        assert caught.value.code == "not_ready"
    assert collection.use(rows) == 250  # needs no file
    shutil.copytree(kept / "rows.lance" / "data", run / "index" / "rows.lance" / "data", dirs_exist_ok=True)
    with pytest.raises(ServeError):
        collection._reopened(collection.use(lambda opened: opened))
    now[0] += module.RETRY_SECONDS
    assert collection.use(nearest)


def test_a_damaged_seal_keeps_the_state_that_is_open(run: Path) -> None:
    collection = Collection(run, memory=1 << 30)
    seal = run / "index" / "index.json"
    data = seal.read_bytes()
    seal.write_bytes(data[:-10])
    assert collection.use(rows) == 250
    assert collection.use(nearest)
    seal.unlink()
    assert collection.use(nearest)
    seal.write_bytes(data)
    os.utime(seal, ns=(1, 1))
    assert collection.use(nearest)


def test_damage_that_stays_is_reported_and_not_searched_for_each_time(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = Collection(run)
    opened = []
    original = OpenedIndex.__init__

    def counted(self: OpenedIndex, *arguments: Any) -> None:
        opened.append(1)
        original(self, *arguments)

    monkeypatch.setattr(OpenedIndex, "__init__", counted)
    (run / "manifest.parquet").write_bytes(b"damaged")
    for _ in range(5):
        with pytest.raises(UsageError) as caught:
            collection.use(lambda opened: opened.source(0))
        assert caught.value.code == "damaged_run"
    assert len(opened) == 1


def test_opening_what_is_no_run(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Collection(tmp_path)
    assert caught.value.code == "not_found"
    shutil.rmtree(run / "index")
    with pytest.raises(UsageError) as caught:
        Collection(run)
    assert caught.value.code == "not_found"


def test_sources_are_those_of_the_listing(run: Path) -> None:
    opened = Collection(run).use(lambda opened: opened)
    assert [opened.source(row).key for row in (0, 99, 100, 249)] == [f"{row:06d}.jpg" for row in (0, 99, 100, 249)]
    with pytest.raises(UsageError) as caught:
        opened.source(250)
    assert caught.value.code == "not_found"


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def blocked(run: Path) -> Iterator[tuple[Collection, threading.Event]]:
    event = threading.Event()
    yield Collection(run), event
    event.set()


def test_too_many_waiting_requests_are_refused(
    blocked: tuple[Collection, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    collection, event = blocked
    monkeypatch.setattr(module, "MAX_WAITING", 5)

    async def ask() -> None:
        work = [asyncio.create_task(collection.run(lambda opened: event.wait(60), 60)) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(ServeError) as caught:
            await collection.run(rows, 60)
        assert caught.value.code == "overloaded"
        event.set()
        assert await asyncio.gather(*work) == [True] * 5
        assert await collection.run(rows, 60) == 250

    asyncio.run(ask())


def test_requests_that_are_given_up_free_their_places(
    blocked: tuple[Collection, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    collection, event = blocked
    monkeypatch.setattr(module, "MAX_WAITING", 4)
    begun = []

    async def ask() -> None:
        busy = [asyncio.create_task(collection.run(lambda opened: event.wait(60), 60)) for _ in range(module.THREADS)]
        await asyncio.sleep(0)
        for _ in range(3):
            with pytest.raises(ServeError) as caught:
                await collection.run(lambda opened: begun.append(1), 0.01)
            assert caught.value.code == "deadline_exceeded"
        left = asyncio.create_task(collection.run(lambda opened: begun.append(2), 60))
        await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        event.set()
        await asyncio.gather(*busy)
        assert await collection.run(rows, 60) == 250

    asyncio.run(ask())
    assert begun == []  # what was given up before it began is not done


def test_concurrent_work_and_updates(run: Path) -> None:
    """Searches by several requests at once always give the rows of one state, while the index is updated."""
    collection = Collection(run, memory=0)
    shards = {seed: numbered(random_vectors(250, seed)[200:], 200) for seed in (0, 9)}
    query = random_vectors(250, 9)[207]  # a row of one of the two states

    def search(opened: OpenedIndex) -> tuple[int, ...]:
        return tuple(row.row for row in opened.index.search(query, top=5))

    expected = set()
    for shard in shards.values():
        write_shard(run, 2, shard)
        build_index(run)
        expected.add(search(OpenedIndex(run, 0)))
    assert len(expected) == 2
    stop = threading.Event()

    def update() -> None:
        for _ in range(3):
            for shard in shards.values():
                write_shard(run, 2, shard)
                build_index(run)
        stop.set()

    async def ask() -> set[tuple[int, ...]]:
        found = set()
        while not stop.is_set():
            answers = await asyncio.gather(*(collection.run(search, 60) for _ in range(8)), return_exceptions=True)
            for answer in answers:
                if isinstance(answer, tuple):
                    found.add(answer)
                else:
                    assert isinstance(answer, ServeError), answer
                    assert answer.code == "not_ready"
        return found

    builder = threading.Thread(target=update)
    builder.start()
    try:
        found = asyncio.run(ask())
    finally:
        builder.join()
    assert found
    assert found <= expected
