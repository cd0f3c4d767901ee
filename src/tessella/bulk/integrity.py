"""Whether the files of a bulk run are those that were written, every row in its place; and mending what is not.

What can be mended comes from what is there twice: run.json and the listing from copy/, entries of the ledger from
log.jsonl. A shard whose file is damaged is taken out of the ledger: the same `tessella run` makes the same rows again.
An index that is damaged is removed: `tessella index` makes it anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import as_path, checked
from ..errors import OutputError, UsageError
from ..records import need_pyarrow
from ..search.index import HOME, check_index
from ..storage import LOCK, file_hash, folder_lock, read_regular, replacing, shared_lock
from .ledger import FILE, Shard, ledger_bytes, read_ledger
from .manifest import MANIFEST, RUN, Manifest
from .runner import COPY, LOG, SUMMARY, Summary, facts_bytes, log_line, need_run, read_facts, read_log_line, writing
from .shards import SHARDS


@dataclass(frozen=True)
class Damage:
    """file: its name from the run's folder; of a shard also which rows of the listing are concerned."""

    file: str
    message: str
    shard: int | None = None
    first: int = 0
    rows: int = 0
    first_key: str = ""
    last_key: str = ""


@dataclass(frozen=True)
class Verdict:
    """rows, shards: of the whole run; finished: shards whose files are there and right."""

    rows: int
    shards: int
    finished: int
    damage: tuple[Damage, ...]


@checked
def verify(out: str | Path) -> Verdict:
    """Read every byte of the run in `out` and compare it with what was written. Nothing is written.

    A file that the disk does not give is damaged like any other. UsageError `not_found` where there is no run, `busy`
    while it is being written, `damaged_run` where neither run.json nor its copy can be read.
    """
    out = as_path("the run", out)
    need_pyarrow()
    need_run(out)
    with _reading(out), shared_lock(out), shared_lock(out / HOME):
        return _State(out).verdict()


@checked
def repair(out: str | Path) -> Verdict:
    """Mend the run in `out`; returns what `verify` had found. Shards that are lost are made by the next `run`.

    All that is written is on the disk before anything is replaced, so a full disk changes nothing. Raises UsageError as
    `verify` does, and `damaged_run` where both copies of the listing are gone: then finished shards keep their rows,
    and the run cannot go on. OutputError `output_failed`.
    """
    out = as_path("the run", out)
    need_pyarrow()
    need_run(out)
    with ExitStack() as stack:
        stack.enter_context(writing(out))
        try:
            stack.enter_context(folder_lock(out))
        except OutputError:  # read-only media: a run without damage needs no repair
            if (found := verify(out)).damage:
                raise
            return found
        if (out / HOME).is_dir():
            stack.enter_context(folder_lock(out / HOME))
        state = _State(out)
        found = state.verdict()
        if found.damage:
            state.mend()
    return found


@contextmanager
def _reading(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError("damaged_run", f"{out} could not be read: {error.strerror or error}") from error


class _State:
    """What is there, read once. good: finished shards whose files are right, by number."""

    def __init__(self, out: Path):
        self.out = out
        self.damage: list[Damage] = []
        self.facts = self._facts()
        self.manifest = self._manifest()
        self.entered = self._entered()
        self.logged = self._logged()
        self.good = self._good()
        self.summary = self._summary()
        self._index()

    def verdict(self) -> Verdict:
        size = self.facts["shard_rows"]
        return Verdict(self.facts["rows"], -(-self.facts["rows"] // size), len(self.good), tuple(self.damage))

    def mend(self) -> None:
        if self.manifest is None:
            raise UsageError(
                "damaged_run", f"neither {self.out / MANIFEST} nor its copy is what was written",
                hint="finished shards are intact; start a new run in another folder for the other inputs",
            )  # fmt: skip
        bad = {one.file for one in self.damage}
        for folder in (COPY, SHARDS):
            (self.out / folder).mkdir(exist_ok=True)
        self._replace(bad)
        for one in self.damage:
            if one.shard is not None:
                (self.out / one.file).unlink(missing_ok=True)
        if any(name.startswith(f"{HOME}/") for name in bad):
            shutil.rmtree(self.out / HOME)

    def _replace(self, bad: set[str]) -> None:
        """Write all that must be replaced beside it, and only then put it in place.

        Replaced are first the copies, then the log, then the ledger: until then it can be made again from the log.
        """
        all_good = len(self.good) == self.verdict().shards
        ledger = self.out / FILE
        anew = ledger_bytes(self.good) if FILE in bad or self.entered != self.good else b""
        with ExitStack() as stack:  # what is entered last is replaced first

            def stage(name: str, data: bytes) -> None:
                file = stack.enter_context(replacing(self.out / name))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

            def remove(*paths: Path) -> None:
                def when_all_is_written(kind: object, *_: object) -> None:
                    for path in paths if kind is None else ():
                        path.unlink(missing_ok=True)

                stack.push(when_all_is_written)

            if self.summary and all_good and anew:
                stage(SUMMARY, facts_bytes(self.summary | dict(ledger=hashlib.sha256(anew).hexdigest())))
            elif not (self.summary and all_good):
                remove(self.out / SUMMARY)
            if anew:
                stage(FILE, anew)
                remove(*(ledger.with_name(FILE + suffix) for suffix in ("-wal", "-shm")))
            if LOG in bad or self.logged != self.good:
                stage(LOG, b"".join(log_line(dict(kind="shard", **vars(shard))) for shard in self.good.values()))
            for name in (RUN, MANIFEST):
                for broken, whole in ((name, f"{COPY}/{name}"), (f"{COPY}/{name}", name)):
                    if broken in bad:
                        stage(broken, (self.out / whole).read_bytes())

    # --- each kind of file --------------------------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        both = {name: read_facts(self.out / name) for name in (RUN, f"{COPY}/{RUN}")}
        whole = next((facts for facts in both.values() if facts is not None), None)
        if whole is None:
            raise UsageError(
                "damaged_run", f"neither {self.out / RUN} nor its copy is what was written",
                hint=f"the rows in {self.out / SHARDS} can still be read as Parquet; start a new run in another folder",
            )  # fmt: skip
        for name, facts in both.items():
            if facts != whole:
                self._report(name, "missing, or not what was written")
        return whole

    def _manifest(self) -> Manifest | None:
        whole = None
        for name in (MANIFEST, f"{COPY}/{MANIFEST}"):
            try:
                there = Manifest(self.out / name, self.facts["manifest"])
                whole = whole or there
            except UsageError:
                self._report(name, "missing, or not what was written")
        return whole

    def _entered(self) -> dict[int, Shard] | None:
        """By the ledger; None where it cannot be read."""
        try:
            return read_ledger(self.out, deep=True)
        except UsageError as error:
            self._report(FILE, error.message)
            return None

    def _logged(self) -> dict[int, Shard]:
        """By the log, where the last word on a shard counts."""
        found: dict[int, Shard] = {}
        try:
            data = read_regular(self.out / LOG)
        except FileNotFoundError:
            data = b""
        except OSError:
            self._report(LOG, "cannot be read")
            return found
        lines = data.split(b"\n")[:-1]  # half a line is one that was cut off
        for number, line in enumerate(lines, 1):
            try:
                shard = read_log_line(line)
                found[shard.id] = shard
            except (ValueError, TypeError, RecursionError):
                self._report(LOG, f"line {number} cannot be read")
        if self.entered is not None:
            for number, shard in found.items():
                if self.entered.get(number) != shard:
                    self._report(FILE, f"shard {number} is not entered as it was finished")
        return found

    def _good(self) -> dict[int, Shard]:
        good: dict[int, Shard] = {}
        entered = self.entered or {}
        for number in sorted(entered.keys() | self.logged.keys()):
            told = ""
            for shard in (entered.get(number), self.logged.get(number)):
                if shard is not None and not (told := self._wrong(number, shard)):
                    good[number] = shard
                    break
            else:
                self._report_shard(number, told)
        return good

    def _wrong(self, number: int, shard: Shard) -> str:
        """What is wrong with a shard's entry or file, or nothing."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        size = self.facts["shard_rows"]
        rows = min(size, self.facts["rows"] - number * size)
        if number < 0 or shard.rows != rows or shard.ok + sum(shard.errors.values()) != rows:
            return "its entry cannot be true"
        path = self.out / SHARDS / Path(shard.file).name
        try:
            if not path.is_file():
                return "missing"
            if path.stat().st_size != shard.bytes or file_hash(path) != shard.sha256:
                return "not the file that was written"
            with path.open("rb") as file:  # its name may be no text
                table = pq.read_table(file, columns=["key", "status"], page_checksum_verification=True)
            told = json.loads(table.schema.metadata[b"tessella"])
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            return "cannot be read"
        if told.get("fingerprint") != self.facts["fingerprint"]:
            return f"of fingerprint {told.get('fingerprint')!r}, the run is {self.facts['fingerprint']!r}"
        errors = Counter(status for status in table.column("status").to_pylist() if status != "ok")
        if errors != shard.errors:
            return "its entry cannot be true"
        listed = None if self.manifest is None else [source.key for source in self.manifest.sources(number)]
        if listed is not None and table.column("key").to_pylist() != listed:
            return "has other keys than the listing"
        return ""

    def _summary(self) -> dict[str, Any]:
        """Where there is one, the run came to its end: then it also tells whether log and ledger are whole."""
        path = self.out / SUMMARY
        if not path.is_file():
            return {}
        told = read_facts(path)
        try:
            if told is None:
                told = json.loads(path.read_bytes())
                if told.keys() != Summary.__dataclass_fields__.keys():  # earlier versions wrote no hash
                    raise ValueError
            right = (told["fingerprint"], told["rows"]) == (self.facts["fingerprint"], self.facts["rows"])
            right = right and told["rows"] == told["ok"] + sum(told["errors"].values())
            if len(self.good) == self.verdict().shards:
                errors: Counter[str] = Counter()
                for shard in self.good.values():
                    errors.update(shard.errors)
                right = right and told["errors"] == errors
            if not right:
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._report(SUMMARY, "not what was written")
            return {}
        if "ledger" in told:
            self._at_the_end(told["ledger"])
        return dict(told)

    def _at_the_end(self, digest: str) -> None:
        if self.entered is not None and _hash_of(self.out / FILE) != digest:
            self._report(FILE, "not the file that was written")
        missing = (self.entered or {}).keys() - self.logged.keys()
        if missing and LOG not in {one.file for one in self.damage}:
            self._report(LOG, f"{len(missing):,} shards are missing")

    def _index(self) -> None:
        if (self.out / HOME).is_dir() and any(path.name != LOCK for path in (self.out / HOME).iterdir()):
            for name in check_index(self.out):
                self._report(f"{HOME}/{name}", "missing or corrupt; `tessella index` rebuilds it")

    # --- reports ------------------------------------------------------------------------------------------------------

    def _report(self, name: str, message: str) -> None:
        self.damage.append(Damage(name, message))

    def _report_shard(self, number: int, message: str) -> None:
        size = self.facts["shard_rows"]
        first, rows = number * size, max(0, min(size, self.facts["rows"] - number * size))
        keys = (
            [source.key for source in self.manifest.sources(number)] if self.manifest and rows and number >= 0 else [""]
        )
        name = f"{SHARDS}/shard-{number:08d}.parquet"
        self.damage.append(Damage(name, message, number, first, rows, keys[0], keys[-1]))


def _hash_of(path: Path) -> str:
    try:
        return file_hash(path)
    except OSError:
        return ""
