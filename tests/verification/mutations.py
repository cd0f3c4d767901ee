"""Change something in an artifact or in its receipt: `replay` must notice every change.

`scripts/soak mutations --out FILE` makes 1,000 changes: flipped bits, deleted and inserted bytes, swapped and missing
files, swapped rows of shards, and changed values of receipts. The tests make a part of them.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from tessella.errors import OutputError
from tessella.verification import Verification, replay, verify, write_receipt

from ..soak import write_figures
from .made import changed, copy_artifacts, files_of, flipped


@contextmanager
def flip_a_bit(artifact: Path, receipt: Path, rng: random.Random) -> Iterator[None]:
    path = rng.choice(files_of(artifact))
    data = path.read_bytes()
    with changed(path, flipped(data, rng.randrange(len(data)), rng.randrange(8))):
        yield


@contextmanager
def cut_bytes(artifact: Path, receipt: Path, rng: random.Random) -> Iterator[None]:
    path = rng.choice(files_of(artifact))
    data = path.read_bytes()
    start = rng.randrange(len(data))
    with changed(path, data[:start] + data[start + rng.randint(1, 64) :]):
        yield


@contextmanager
def insert_bytes(artifact: Path, receipt: Path, rng: random.Random) -> Iterator[None]:
    path = rng.choice(files_of(artifact))
    data = path.read_bytes()
    start = rng.randint(0, len(data))
    with changed(path, data[:start] + rng.randbytes(rng.randint(1, 64)) + data[start:]):
        yield


@contextmanager
def swap_files(artifact: Path, receipt: Path, rng: random.Random) -> Iterator[None]:
    """Swap two files with different contents; a single file gets that of another one."""
    files = files_of(artifact)
    one = rng.choice(files)
    others = [path for path in [*files, receipt] if path.read_bytes() != one.read_bytes()]
    other = rng.choice([path for path in others if path != receipt] or others)
    with ExitStack() as stack:
        first, second = one.read_bytes(), other.read_bytes()
        stack.enter_context(changed(one, second))
        if other != receipt:
            stack.enter_context(changed(other, first))
        yield


@contextmanager
def remove_a_file(artifact: Path, receipt: Path, rng: random.Random) -> Iterator[None]:
    """Remove a file of a folder; truncate a single file to nothing."""
    path = rng.choice(files_of(artifact))
    with changed(path, b""):
        if artifact.is_dir():
            path.unlink()
        yield


@contextmanager
def add_a_file(artifact: Path, receipt: Path, rng: random.Random) -> Iterator[None]:
    """Add a file to a folder; append a byte to a single file."""
    if artifact.is_file():
        with changed(artifact, artifact.read_bytes() + b"\0"):
            yield
        return
    path = artifact / f"added-{rng.randrange(1000)}.bin"
    path.write_bytes(rng.randbytes(8))
    try:
        yield
    finally:
        path.unlink()


@contextmanager
def swap_rows(artifact: Path, receipt: Path, rng: random.Random) -> Iterator[None]:
    """Swap the embeddings of two rows of a shard, in a valid Parquet file; flip a bit elsewhere."""
    shards = sorted((artifact / "shards").glob("*.parquet")) if artifact.is_dir() else []
    if not shards:
        with flip_a_bit(artifact, receipt, rng):
            yield
        return
    path = rng.choice(shards)
    table = pq.ParquetFile(path).read()
    order = list(range(len(table)))
    a, b = rng.sample(order, 2)
    order[a], order[b] = b, a
    column = table.schema.get_field_index("embedding")
    swapped = table.set_column(column, table.schema.field(column), table["embedding"].take(order))
    before = path.read_bytes()
    try:
        pq.write_table(swapped, path, compression="zstd", write_page_checksum=True)
        yield
    finally:
        path.write_bytes(before)


@contextmanager
def change_the_receipt(artifact: Path, receipt: Path, rng: random.Random) -> Iterator[None]:
    """Flip a bit, remove or insert a byte, or repeat a line of the receipt; JSON would not notice some of these."""
    data = receipt.read_bytes()
    place = rng.randrange(len(data))
    lines = data.splitlines(keepends=True)
    line = rng.randrange(len(lines))
    new = [
        flipped(data, place, rng.randrange(8)),
        data[:place] + data[place + 1 :],
        data[:place] + rng.choice([b" ", b"\n", b"0", b'"']) + data[place:],
        b"".join([*lines[:line], lines[line], *lines[line:]]),
    ]
    with changed(receipt, rng.choice(new)):
        yield


@contextmanager
def change_a_value(artifact: Path, receipt: Path, rng: random.Random) -> Iterator[None]:
    """Change one number or text in the receipt, and write it as valid JSON with the old hash."""
    values = json.loads(receipt.read_bytes())
    key = rng.choice([name for name in values if name != "sha256"])
    values[key] = _other(values[key], rng)
    with changed(receipt, (json.dumps(values, indent=1) + "\n").encode()):
        yield


def _other(value: object, rng: random.Random) -> object:
    """Return the value with one of its parts changed."""
    if isinstance(value, dict) and value:
        name = rng.choice(list(value))
        return {**value, name: _other(value[name], rng)}
    if isinstance(value, list) and value:
        place = rng.randrange(len(value))
        return [_other(one, rng) if i == place else one for i, one in enumerate(value)]
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x"


MUTATIONS = (
    *(flip_a_bit, cut_bytes, insert_bytes, swap_files, remove_a_file, add_a_file, swap_rows),
    *(change_the_receipt, change_a_value),
)


def detect(artifact: Path, receipt: Path) -> str:
    """Return how a change is detected: "receipt" or "file"; "" if it is not."""
    try:
        found = replay(receipt, artifact)
    except OutputError as error:
        return "receipt" if error.code == "damaged_receipt" else ""
    return "file" if found.failed else ""


def passes(found: Verification) -> bool:
    return not found.failed


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/soak mutations", description=__doc__)
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        artifacts, receipts = copy_artifacts(Path(name)), {}
        for kind, path in artifacts.items():
            receipts[kind] = Path(name) / f"{kind}.json"
            write_receipt(verify(path), receipts[kind])
        for number in range(args.mutations):
            kind, mutate = rng.choice(list(artifacts)), MUTATIONS[number % len(MUTATIONS)]
            with mutate(artifacts[kind], receipts[kind], rng):
                how = detect(artifacts[kind], receipts[kind])
            counts[f"{kind}, {mutate.__name__}: {how or 'not detected'}"] += 1
            if (number + 1) % 100 == 0:
                print(number + 1, "mutations", flush=True)
        intact = all(passes(replay(receipts[kind], path)) for kind, path in artifacts.items())
    missed = sum(count for name, count in counts.items() if name.endswith("not detected"))
    totals = dict(mutations=args.mutations, detected=args.mutations - missed, missed=missed, intact_afterwards=intact)
    print(json.dumps(totals))
    what = "changes of models, exports, runs, indexes and receipts that `tessella replay` detects"
    write_figures(args.out, what, dict(totals=totals, counts=dict(sorted(counts.items()))), seed=args.seed)
    assert not missed
    assert intact
