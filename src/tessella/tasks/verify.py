"""Whether the files of a bulk run are those that were written, every row in its place; and mending what is not.

What can be mended comes from what is there twice: run.json and the listing from copy/, entries of the ledger from
log.jsonl. A shard whose file is damaged is taken out of the ledger: the same `tessella run` makes the same rows again.
An index that is damaged is removed: `tessella index` makes it anew.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic import copy_file, write_atomic
from ..checks import checked
from ..errors import UsageError
from .bulk import COPY, LOG, SUMMARY, need_run, read_facts, writing
from .index import HOME, check_index
from .ledger import FILE, Ledger, Shard, alone
from .manifest import MANIFEST, RUN, Manifest, file_hash
from .output import need_pyarrow
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
    """Read every byte of the run in `out` and compare it with what was written.

    A file that the disk does not give is damaged like any other. UsageError `not_found` where there is no run, `busy`
    while it is being written, `damaged_run` where neither run.json nor its copy can be read, `output_failed`.
    """
    out = Path(out)
    with _held(out):
        return _State(out).verdict()


@checked
def repair(out: str | Path) -> Verdict:
    """Mend the run in `out`; returns what `verify` had found. Shards that are lost are made by the next `run`.

    UsageError as of `verify`, and `damaged_run` where both copies of the listing are gone: then finished shards keep
    their rows, and the run cannot go on.
    """
    out = Path(out)
    with _held(out):
        state = _State(out)
        found = state.verdict()
        if found.damage:
            state.mend()
    return found


@contextmanager
def _held(out: Path) -> Iterator[None]:
    need_pyarrow()
    need_run(out)
    with writing(out), alone(out):
        yield


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
        self._summary()
        self._index()

    def verdict(self) -> Verdict:
        size = self.facts["shard_rows"]
        return Verdict(self.facts["rows"], -(-self.facts["rows"] // size), len(self.good), tuple(self.damage))

    def mend(self) -> None:
        if self.manifest is None:
            raise UsageError(
                "damaged_run", f"neither {self.out / MANIFEST} nor its copy is what was written",
                hint="finished shards are whole; begin anew in another folder for the other inputs",
            )  # fmt: skip
        bad = {one.file for one in self.damage}
        (self.out / COPY).mkdir(exist_ok=True)
        (self.out / SHARDS).mkdir(exist_ok=True)
        for name in (RUN, MANIFEST):
            for broken, whole in ((name, f"{COPY}/{name}"), (f"{COPY}/{name}", name)):
                if broken in bad:
                    copy_file(self.out / whole, self.out / broken)
        for one in self.damage:
            if one.shard is not None:
                (self.out / one.file).unlink(missing_ok=True)
        if self.entered != self.good:
            with Ledger(self.out, new=True) as ledger:
                for shard in self.good.values():
                    ledger.commit(shard)
        # after the ledger: until then it is what a ledger can be made from
        lines = [json.dumps(dict(kind="shard", **vars(shard))) + "\n" for shard in self.good.values()]
        write_atomic(self.out / LOG, "".join(lines).encode())
        if SUMMARY in bad:
            (self.out / SUMMARY).unlink(missing_ok=True)
        if any(name.startswith(f"{HOME}/") for name in bad):
            shutil.rmtree(self.out / HOME)

    # --- each kind of file --------------------------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        both = {name: read_facts(self.out / name) for name in (RUN, f"{COPY}/{RUN}")}
        whole = next((facts for facts in both.values() if facts is not None), None)
        if whole is None:
            raise UsageError(
                "damaged_run", f"neither {self.out / RUN} nor its copy is what was written",
                hint=f"the rows in {self.out / SHARDS} can still be read as Parquet; begin anew in another folder",
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
            with Ledger(self.out) as ledger:
                ledger.check()
                return ledger.finished()
        except UsageError as error:
            self._report(FILE, error.message)
            return None

    def _logged(self) -> dict[int, Shard]:
        """By the log, where the last word on a shard counts."""
        found: dict[int, Shard] = {}
        path = self.out / LOG
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            data = b""
        except OSError:
            self._report(LOG, "cannot be read")
            data = b""
        lines = data.split(b"\n")[:-1]  # half a line is one that was cut off
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
                shard = Shard(**{name: event[name] for name in Shard.__dataclass_fields__})
                found[shard.id] = shard
            except (ValueError, TypeError, KeyError):
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
        if not path.is_file():
            return "missing"
        try:
            if path.stat().st_size != shard.bytes or file_hash(path) != shard.sha256:
                return "not the file that was written"
            table = pq.read_table(path, columns=["key", "status"], page_checksum_verification=True)
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

    def _summary(self) -> None:
        path = self.out / SUMMARY
        if not path.is_file():
            return  # the run has not come to its end
        try:
            told = json.loads(path.read_bytes())
            right = (told["fingerprint"], told["rows"]) == (self.facts["fingerprint"], self.facts["rows"])
            right = right and told["rows"] == told["ok"] + sum(told["errors"].values())
            if len(self.good) == self.verdict().shards:
                errors: Counter[str] = Counter()
                for shard in self.good.values():
                    errors.update(shard.errors)
                right = right and told["errors"] == errors
            if not right:
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self._report(SUMMARY, "not what was written")

    def _index(self) -> None:
        if (self.out / HOME).is_dir():
            with alone(self.out / HOME):
                for name in check_index(self.out):
                    self._report(f"{HOME}/{name}", "missing, or not what was written; `tessella index` makes it anew")

    # --- reports ------------------------------------------------------------------------------------------------------

    def _report(self, name: str, message: str) -> None:
        self.damage.append(Damage(name, message))

    def _report_shard(self, number: int, message: str) -> None:
        size = self.facts["shard_rows"]
        first, rows = number * size, max(0, min(size, self.facts["rows"] - number * size))
        keys = [source.key for source in self.manifest.sources(number)] if self.manifest and rows else [""]
        name = f"{SHARDS}/shard-{number:08d}.parquet"
        self.damage.append(Damage(name, message, number, first, rows, keys[0], keys[-1]))
