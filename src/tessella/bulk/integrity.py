"""Check that the files of a bulk run are those that were written, with every row in its place, and repair damage.

A repair uses what exists twice: run.json and the listing are also in copy/, the entries of the ledger also in
log.jsonl. A shard whose file is damaged is removed from the ledger, and the next `tessella run` makes the same rows
again. A damaged index is removed; `tessella index` rebuilds it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..checks import as_path, checked
from ..errors import OutputError, UsageError
from ..extras import need_pyarrow
from ..storage import (
    LOCK,
    damaged_files,
    file_hash,
    folder_lock,
    read_regular,
    read_sealed,
    replacing,
    sealed_bytes,
    shared_lock,
)
from ..text import count_of
from .ledger import LEDGER, Shard, ledger_bytes, read_ledger
from .manifest import MANIFEST, Manifest
from .run_folder import (
    COPY,
    INDEX,
    INDEX_SEAL,
    INDEX_SEAL_KEY,
    LOG,
    RUN,
    SEAL_KEY,
    SUMMARY,
    RunFacts,
    log_line,
    read_facts,
    read_log_line,
    require_run,
    shard_entry,
)
from .runner import translate_errors
from .shards import SHARDS

# summary.json of earlier versions, which had no hash
UNSEALED_SUMMARY_KEYS = {"out", "fingerprint", "rows", "ok", "errors", "images_per_second", "share"}


@dataclass(frozen=True)
class Damage:
    """A damaged file: its path relative to the run, and what is wrong.

    For a shard also its number, the rows of the listing that it holds (`rows` of them from `first` on), and the first
    and last of their keys.
    """

    file: str
    message: str
    shard: int | None = None
    first: int = 0
    rows: int = 0
    first_key: str = ""
    last_key: str = ""


@dataclass(frozen=True)
class IntegrityReport:
    """The numbers of rows and shards of the whole run, how many shards are finished and intact, and all damage."""

    rows: int
    shards: int
    finished: int
    damage: tuple[Damage, ...]

    @property
    def lost_rows(self) -> int:
        """Number of rows in damaged shards, which must be computed again."""
        return sum(damage.rows for damage in self.damage if damage.shard is not None)


@checked
def verify(out: str | Path) -> IntegrityReport:
    """Read every byte of the run in `out` and compare it with what was written. Nothing is written.

    A file that cannot be read is damaged. Raises UsageError `not_found` if there is no run, `busy` while it is being
    written, `damaged_run` if neither run.json nor its copy can be read.
    """
    out = as_path("the run", out)
    need_pyarrow()
    require_run(out)
    with _reading(out), shared_lock(out), shared_lock(out / INDEX):
        return _Inspection(out).report()


@checked
def repair(out: str | Path) -> IntegrityReport:
    """Repair the run in `out` and return what `verify` found before. The next `run` makes lost shards again.

    Everything is written to temporary files before any file is replaced, so a full disk changes nothing. Raises
    UsageError as `verify` does, and `damaged_run` if both copies of the listing are lost: then finished shards keep
    their rows, but the run cannot be resumed. Raises OutputError `output_failed`.
    """
    out = as_path("the run", out)
    need_pyarrow()
    require_run(out)
    with ExitStack() as stack:
        stack.enter_context(translate_errors(out))
        try:
            stack.enter_context(folder_lock(out))
        except OutputError:  # read-only media: a run without damage needs no repair
            report = verify(out)
            if report.damage:
                raise
            return report
        if (out / INDEX).is_dir():
            stack.enter_context(folder_lock(out / INDEX))
        inspection = _Inspection(out)
        report = inspection.report()
        if report.damage:
            inspection.repair()
    return report


@contextmanager
def _reading(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError("damaged_run", f"{out} could not be read: {error.strerror or error}") from error


class _Inspection:
    """The state of a run, read once.

    recorded: shards in the ledger, None if it cannot be read. logged: shards in the log. intact: finished shards whose
    files are as they were written. All by number. manifest: None if both copies are damaged.
    """

    def __init__(self, out: Path):
        self.out = out
        self.damage: list[Damage] = []
        self.facts = self._read_facts()
        self.manifest = self._read_manifest()
        self.recorded = self._read_ledger()
        self.logged = self._read_log()
        self.intact = self._check_shards()
        self.summary = self._read_summary()
        self._check_index()

    def report(self) -> IntegrityReport:
        return IntegrityReport(self.facts["rows"], self._shard_count, len(self.intact), tuple(self.damage))

    def repair(self) -> None:
        if self.manifest is None:
            raise UsageError(
                "damaged_run",
                f"{self.out / MANIFEST} and its copy are damaged",
                hint="finished shards are intact; start a new run in another folder for the other inputs",
            )
        damaged = {damage.file for damage in self.damage}
        for folder in (COPY, SHARDS):
            (self.out / folder).mkdir(exist_ok=True)
        self._replace_files(damaged)
        for damage in self.damage:
            if damage.shard is not None:
                (self.out / damage.file).unlink(missing_ok=True)
        if any(name.startswith(f"{INDEX}/") for name in damaged):
            shutil.rmtree(self.out / INDEX)

    def _replace_files(self, damaged: set[str]) -> None:
        """Write everything that must be replaced to temporary files, and only then put these in place.

        The copies are replaced first, then the log, then the ledger: until then, the ledger can be rebuilt from it.
        """
        is_complete = len(self.intact) == self._shard_count
        ledger = self.out / LEDGER
        new_ledger = ledger_bytes(self.intact) if LEDGER in damaged or self.recorded != self.intact else b""
        with ExitStack() as stack:  # what is entered last is replaced first

            def stage(name: str, data: bytes) -> None:
                file = stack.enter_context(replacing(self.out / name))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

            def remove(*paths: Path) -> None:
                def remove_if_all_is_written(error_type: object, *_: object) -> None:
                    for path in paths if error_type is None else ():
                        path.unlink(missing_ok=True)

                stack.push(remove_if_all_is_written)

            if self.summary and is_complete and new_ledger:
                summary = self.summary | dict(ledger=hashlib.sha256(new_ledger).hexdigest())
                stage(SUMMARY, sealed_bytes(summary, SEAL_KEY))
            elif not (self.summary and is_complete):
                remove(self.out / SUMMARY)
            if new_ledger:
                stage(LEDGER, new_ledger)
                remove(*(ledger.with_name(LEDGER + suffix) for suffix in ("-wal", "-shm")))
            if LOG in damaged or self.logged != self.intact:
                stage(LOG, b"".join(log_line(shard_entry(shard)) for shard in self.intact.values()))
            for name in (RUN, MANIFEST):
                for broken, other in ((name, f"{COPY}/{name}"), (f"{COPY}/{name}", name)):
                    if broken in damaged:
                        stage(broken, (self.out / other).read_bytes())

    @property
    def _shard_count(self) -> int:
        return -(-self.facts["rows"] // self.facts["shard_rows"])

    # --- each kind of file --------------------------------------------------------------------------------------------

    def _read_facts(self) -> RunFacts:
        copies = {name: read_facts(self.out / name) for name in (RUN, f"{COPY}/{RUN}")}
        intact = next((facts for facts in copies.values() if facts is not None), None)
        if intact is None:
            raise UsageError(
                "damaged_run",
                f"{self.out / RUN} and its copy are damaged",
                hint=f"the rows in {self.out / SHARDS} can still be read as Parquet; start a new run in another folder",
            )
        for name, facts in copies.items():
            if facts != intact:
                self._report(name, "missing or not what was written")
        return cast(RunFacts, intact)

    def _read_manifest(self) -> Manifest | None:
        intact = None
        for name in (MANIFEST, f"{COPY}/{MANIFEST}"):
            try:
                manifest = Manifest(self.out / name, self.facts["manifest"])
                intact = intact or manifest
            except UsageError:
                self._report(name, "missing or not what was written")
        return intact

    def _read_ledger(self) -> dict[int, Shard] | None:
        try:
            return read_ledger(self.out, deep=True)
        except UsageError as error:
            self._report(LEDGER, error.message)
            return None

    def _read_log(self) -> dict[int, Shard]:
        """Return the shards in the log; if a shard has several lines, the last one counts."""
        logged: dict[int, Shard] = {}
        try:
            data = read_regular(self.out / LOG)
        except FileNotFoundError:
            data = b""
        except OSError:
            self._report(LOG, "cannot be read")
            return logged
        lines = data.split(b"\n")[:-1]  # an incomplete last line is no damage
        for number, line in enumerate(lines, 1):
            try:
                shard = read_log_line(line)
                logged[shard.id] = shard
            except (ValueError, TypeError, RecursionError):
                self._report(LOG, f"line {number} cannot be read")
        if self.recorded is not None:
            for number, shard in logged.items():
                if self.recorded.get(number) != shard:
                    self._report(LEDGER, f"shard {number} is not recorded as it was finished")
        return logged

    def _check_shards(self) -> dict[int, Shard]:
        intact: dict[int, Shard] = {}
        recorded = self.recorded or {}
        for number in sorted(recorded.keys() | self.logged.keys()):
            problem = ""
            for shard in (recorded.get(number), self.logged.get(number)):
                if shard is None:
                    continue
                problem = self._find_problem(number, shard)
                if not problem:
                    intact[number] = shard
                    break
            else:
                self._report_shard(number, problem)
        return intact

    def _find_problem(self, number: int, shard: Shard) -> str:
        """Return what is wrong with the entry or the file of a shard, "" for nothing."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        size = self.facts["shard_rows"]
        rows = min(size, self.facts["rows"] - number * size)
        if number < 0 or shard.rows != rows or shard.ok + sum(shard.errors.values()) != rows:
            return "its entry is wrong"
        path = self.out / SHARDS / Path(shard.file).name
        try:
            if not path.is_file():
                return "missing"
            if path.stat().st_size != shard.bytes or file_hash(path) != shard.sha256:
                return "not the file that was written"
            with path.open("rb") as file:  # not by name, which may not be UTF-8
                table = pq.ParquetFile(file, page_checksum_verification=True).read(columns=["key", "status"])
            metadata = json.loads(table.schema.metadata[b"tessella"])
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            return "cannot be read"
        if metadata.get("fingerprint") != self.facts["fingerprint"]:
            return f"has fingerprint {metadata.get('fingerprint')!r}, the run {self.facts['fingerprint']!r}"
        errors = Counter(status for status in table.column("status").to_pylist() if status != "ok")
        if errors != shard.errors:
            return "its entry is wrong"
        if self.manifest is not None:
            keys = [source.key for source in self.manifest.sources(number)]
            if table.column("key").to_pylist() != keys:
                return "has other keys than the listing"
        return ""

    def _read_summary(self) -> dict[str, Any]:
        """Return the summary, {} if there is none or it is damaged.

        It exists only if the run is complete; then the log and the ledger must be complete, too.
        """
        path = self.out / SUMMARY
        if not path.is_file():
            return {}
        summary = read_facts(path)
        try:
            if summary is None:
                summary = json.loads(path.read_bytes())
                if summary.keys() != UNSEALED_SUMMARY_KEYS:
                    raise ValueError
            if not self._is_summary(summary):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            self._report(SUMMARY, "not what was written")
            return {}
        if "ledger" in summary:
            self._check_complete(summary["ledger"])
        return summary

    def _is_summary(self, summary: Mapping[str, Any]) -> bool:
        """Return whether the counts add up to those of the run."""
        if (summary["fingerprint"], summary["rows"]) != (self.facts["fingerprint"], self.facts["rows"]):
            return False
        if len(self.intact) == self._shard_count:
            errors: Counter[str] = Counter()
            for shard in self.intact.values():
                errors.update(shard.errors)
            if summary["errors"] != errors:
                return False
        return bool(summary["rows"] == summary["ok"] + sum(summary["errors"].values()))

    def _check_complete(self, ledger_hash: str) -> None:
        if self.recorded is not None and _hash_of(self.out / LEDGER) != ledger_hash:
            self._report(LEDGER, "not the file that was written")
        missing = (self.recorded or {}).keys() - self.logged.keys()
        if missing and LOG not in {damage.file for damage in self.damage}:
            self._report(LOG, f"{count_of(len(missing), 'shard')} missing")

    def _check_index(self) -> None:
        folder = self.out / INDEX
        if not folder.is_dir() or all(path.name == LOCK for path in folder.iterdir()):
            return
        seal = read_sealed(folder / INDEX_SEAL, INDEX_SEAL_KEY)
        try:
            damaged = [INDEX_SEAL] if seal is None else list(damaged_files(folder, seal["files"]))
        except (LookupError, TypeError, ValueError, AttributeError):  # its hash is right, its contents are not
            damaged = [INDEX_SEAL]
        for name in damaged:
            self._report(f"{INDEX}/{name}", "missing or corrupt; `tessella index` rebuilds it")

    # --- reports ------------------------------------------------------------------------------------------------------

    def _report(self, name: str, message: str) -> None:
        self.damage.append(Damage(name, message))

    def _report_shard(self, number: int, message: str) -> None:
        size = self.facts["shard_rows"]
        first, rows = number * size, max(0, min(size, self.facts["rows"] - number * size))
        keys = [""]
        if self.manifest and rows and number >= 0:
            keys = [source.key for source in self.manifest.sources(number)]
        name = f"{SHARDS}/shard-{number:08d}.parquet"
        self.damage.append(Damage(name, message, number, first, rows, keys[0], keys[-1]))


def _hash_of(path: Path) -> str:
    try:
        return file_hash(path)
    except OSError:
        return ""
