"""Test decoding in other processes: the pixels are the same, and a faulty image affects no other image."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessella.data import memory
from tessella.data.decode import Mode, Policy
from tessella.data.isolated.decoder import IsolatedDecoder
from tessella.data.isolated.protocol import Decoded
from tessella.data.limits import DEFAULT_LIMITS, Limits
from tessella.data.source import Source
from tessella.data.sources import iter_sources
from tessella.data.spec import InputSpec
from tessella.data.transforms import load_pixels
from tessella.errors import ImageError, UsageError

from ..archives import EXTRACTION

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")

ROOT = Path(__file__).resolve().parents[2]
SPEC = InputSpec(height=24, width=20)


@dataclass(frozen=True)
class FaultySource(Source):
    """A source that crashes, hangs or otherwise disturbs the process that reads it."""

    fault: str = ""
    content: bytes = b""

    def read(self, limits: Limits = DEFAULT_LIMITS) -> bytes:
        match self.fault:
            case "exit":
                os._exit(3)
            case "segv":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "once":  # like a kill from outside: the second time, the file exists
                if not Path(self.path).exists():
                    Path(self.path).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                Path(self.path).touch()
                time.sleep(1000)
            case "long":  # a read that takes more memory and time than an image
                assert memory.make_room(1000)
                time.sleep(2.5)
            case "slow":
                time.sleep(0.1)
            case "endless":
                kept = []
                while True:
                    kept.append(bytes(50_000_000))
            case "tight":  # decoding does not get the memory it needs
                used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + 60_000_000,) * 2)
            case "raise":
                raise KeyError(f"{object()} of a library")
            case "nothing":
                return None  # type: ignore[return-value]
            case "garble":  # an answer that the worker would not give
                for fd in (int(name) for name in os.listdir("/proc/self/fd")):  # noqa: PTH208
                    with contextlib.suppress(OSError):
                        if stat.S_ISSOCK(os.fstat(fd).st_mode):
                            os.write(fd, self.content)
            case "report":
                raise ImageError("unreadable", f"{os.getpid()} {'torch' in sys.modules}")
        return self.content


def png(i: int) -> bytes:
    """Return a small image that differs from all others."""
    from . import hostile  # not at the top: workers import this module for `FaultySource`, without its files

    return hostile.png(30 + i % 50, 20 + i // 50, pixels=True)


def good(i: int, fault: str = "") -> FaultySource:
    return FaultySource(f"image {i}", "", fault=fault, content=png(i))


def bad(fault: str, path: Path | str = "") -> FaultySource:
    return FaultySource(fault, str(path), fault=fault)


def check(
    source: Source, result: Decoded, spec: InputSpec = SPEC, policy: Policy = "tessella", mode: Mode = "exact"
) -> None:
    """Assert that the result equals that of this process."""
    data = Source.read(source) if source.path else source.read()
    assert (result.sha256, result.bytes) == (hashlib.sha256(data).hexdigest(), len(data)), source.key
    try:
        expected, error = load_pixels(data, spec, policy=policy, mode=mode), None
    except ImageError as failure:
        expected, error = None, failure
    assert str(result.error) == str(error), source.key
    assert code(result) == (error.code if error else "ok"), source.key
    assert np.array_equal(result.pixels, expected), source.key  # type: ignore[arg-type]
    assert error or min(result.width, result.height) > 0


def code(result: Decoded) -> str:
    if result.error is None:
        assert result.pixels is not None
        return "ok"
    assert result.pixels is None
    assert not re.search(r"0x|object at|KeyError|Traceback", str(result.error))
    return result.error.code


def children(pid: int | str = "self") -> set[int]:
    """Return the child processes of a process, zombies included."""
    pids: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the thread has just ended
            pids |= {int(child) for child in (task / "children").read_text().split()}
    return pids


def started_since(others: set[int]) -> int:
    """Return the one child that is not in `others`; its id may be lower than theirs, since ids wrap around."""
    (pid,) = children() - others
    return pid


def wait_until(true: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    before, threads, files = children(), threading.active_count(), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    yield
    assert children() <= before
    assert threading.active_count() <= threads
    assert len(os.listdir("/proc/self/fd")) <= files  # noqa: PTH208


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "policy"), [("exact", "tessella"), ("exact", "timm"), ("fast", "tessella")])
def test_pixels_equal_those_of_load_pixels(golden_dir: Path, mode: Mode, policy: Policy) -> None:
    sources = list(iter_sources([str(golden_dir / "images")]))
    spec = InputSpec(interpolation="bicubic")
    with IsolatedDecoder(spec, policy=policy, mode=mode, processes=1) as decoder:
        out = list(decoder.decoded(sources))
    assert len(out) == len(sources) == 11
    for source, result in zip(sources, out, strict=True):
        check(source, result, spec, policy, mode)
    sizes = {Path(source.key).name: (result.width, result.height) for source, result in zip(sources, out, strict=True)}
    assert sizes["exif6.jpg"] == ((300, 400) if policy == "tessella" else (400, 300))  # upright, or as stored


@pytest.mark.slow
def test_odd_images(shared_data: Path, tmp_path: Path) -> None:
    with tarfile.open(shared_data / "odd-images.tar.gz") as archive:
        archive.extractall(tmp_path, **EXTRACTION)
    sources = [Source(str(path), str(path)) for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    with IsolatedDecoder(SPEC, processes=2) as decoder:
        out = list(decoder.decoded(sources))
    assert len(out) == len(sources) == 647
    for source, result in zip(sources, out, strict=True):
        check(source, result)
    assert {"ok", "corrupt_image", "unsupported_format"} <= {code(result) for result in out}


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "large.png").write_bytes(bytes(1001))
    paths = [tmp_path / name for name in ("absent.png", "empty.png", "large.png")]
    limits = Limits(bytes=1000)
    with IsolatedDecoder(SPEC, processes=1, limits=limits) as decoder:
        out = list(decoder.decoded([Source(str(path), str(path)) for path in paths]))
    assert [code(result) for result in out] == ["not_found", "empty", "too_many_bytes"]
    assert out[0][2:] == ("", 0, 0, 0)
    assert out[1][2:] == (hashlib.sha256(b"").hexdigest(), 0, 0, 0)


def test_relative_paths_start_where_the_decoder_was_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    monkeypatch.chdir(tmp_path)
    with IsolatedDecoder(SPEC, processes=1) as decoder:
        monkeypatch.chdir("/")
        sources = [Source("a.png", "a.png"), bad("exit"), Source("a", "a.png")]
        assert [code(result) for result in decoder.decoded(sources)] == ["ok", "decoder_crashed", "ok"]


# --- faults -----------------------------------------------------------------------------------------------------------


def test_every_fault_costs_one_image(tmp_path: Path) -> None:
    """Ten of a hundred images are faulty; sources larger than a socket buffer follow the one that hangs."""
    faults = {
        5: (bad("exit"), "decoder_crashed"),
        17: (bad("segv"), "decoder_crashed"),
        18: (bad("exit"), "decoder_crashed"),
        25: (bad("hang", tmp_path / "hung"), "timeout"),
        33: (bad("once", tmp_path / "killed"), "empty"),
        41: (bad("endless"), "unreadable"),
        58: (bad("raise"), "unreadable"),
        66: (bad("nothing"), "unreadable"),
        70: (FaultySource("cut", "", content=png(3)[:50]), "corrupt_image"),
        99: (bad("segv"), "decoder_crashed"),
    }
    large = {i: FaultySource("large", "", content=png(i) + bytes(2_000_000)) for i in range(26, 30)}
    sources = [large.get(i) or good(i, "slow" if i % 13 == 0 else "") for i in range(100)]
    for i, (source, _) in faults.items():
        sources[i] = source
    with IsolatedDecoder(SPEC, processes=2, timeout=5.0) as decoder:
        out = list(decoder.decoded(sources))
        assert [code(result) for result in out] == [faults[i][1] if i in faults else "ok" for i in range(100)]
        for i in set(range(100)) - set(faults):
            check(FaultySource("", "", content=sources[i].content), out[i])
        assert "SIGSEGV, twice" in str(out[17].error)
        assert "exit status 3" in str(out[5].error)
        assert "5 seconds" in str(out[25].error)
        assert [code(result) for result in decoder.decoded([good(1)])] == ["ok"]


@pytest.mark.parametrize(
    "answer",
    [
        b"no JSON",
        b"{}",
        b'"answer"',
        b"[null]",
        b'[["empty", "", ""], "", Infinity, 0, 0]',
        b'[["empty"], "", 0, 0, 0]',
        b"[" * 100_000,
    ],
    ids=lambda answer: answer[:20].decode(),
)
def test_invalid_answers_cost_one_image(answer: bytes) -> None:
    source = FaultySource("garbled", "", fault="garble", content=answer + b"\n")
    with IsolatedDecoder(SPEC, processes=1) as decoder:
        results = list(decoder.decoded([good(1), source, good(2)]))
    assert [code(result) for result in results] == ["ok", "decoder_crashed", "ok"]


def test_announced_long_reads_get_more_time() -> None:
    """For example, to read a page of a Parquet file for a single image; once per image."""
    with IsolatedDecoder(SPEC, processes=1, timeout=1.0) as decoder:
        assert [code(result) for result in decoder.decoded([good(1), good(2, "long"), good(3)])] == ["ok"] * 3
        assert [code(result) for result in decoder.decoded([good(4), bad("hang", os.devnull)])] == ["ok", "timeout"]


def test_decoding_without_enough_memory() -> None:
    from . import hostile

    source = FaultySource("tight", "", fault="tight", content=hostile.png(7_000, 7_000, pixels=True))
    with IsolatedDecoder(SPEC, processes=1) as decoder:
        (result,) = decoder.decoded([source])
    assert code(result) == "too_many_pixels"
    assert result.bytes == len(source.content)


@pytest.mark.slow
def test_the_largest_image_has_enough_memory(tmp_path: Path) -> None:
    """WebP takes more memory than any other format: 1.4 GB in addition to the file, which is padded."""
    Image.new("RGBA", (7_000, 7_000), (9, 8, 7, 6)).save(tmp_path / "large.webp", lossless=True, method=0)
    with (tmp_path / "large.webp").open("ab") as file:
        file.truncate(200_000_000)
    with IsolatedDecoder(SPEC, processes=1) as decoder:
        (result,) = decoder.decoded([Source("large", str(tmp_path / "large.webp"))])
    assert code(result) == "ok"
    assert (result.width, result.height) == (7_000, 7_000)


def test_kills_from_outside_lose_no_image() -> None:
    """Kill workers, and the process that forks them."""
    others = children()
    with IsolatedDecoder(SPEC, processes=2) as decoder:
        killed: set[int] = set()
        for i, result in enumerate(decoder.decoded(good(i, "slow" if i % 4 == 0 else "") for i in range(100))):
            check(good(i), result)
            if i in (20, 50, 80):
                server = started_since(others)
                victim = server if i == 50 else next(iter(children(server) - killed))
                os.kill(victim, signal.SIGKILL)
                killed.add(victim)
        assert started_since(others) not in killed
    assert len(killed) == 3
    assert i == 99


def test_a_lost_process_is_replaced_without_new_imports() -> None:
    others = children()
    with IsolatedDecoder(SPEC, mode="fast", processes=1) as decoder:
        list(decoder.decoded([good(1)]))
        server = started_since(others)
        (before,) = children(server)
        assert [code(result) for result in decoder.decoded([bad("exit")])] == ["decoder_crashed"]
        (result,) = decoder.decoded([bad("report")])
        assert str(result.error).endswith(" False")  # torch is not imported
        (after,) = children(server)
        assert started_since(others) == server
        assert after != before


def test_processes_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for program in (shutil.which("false"), "/no/such/program"):
        monkeypatch.setattr(sys, "executable", program)
        with IsolatedDecoder(SPEC, processes=2) as decoder:
            with pytest.raises(UsageError, match="no image can be decoded") as error:
                list(decoder.decoded([good(1)]))
            assert error.value.code == "unreadable"


# --- runs -------------------------------------------------------------------------------------------------------------


def test_order_and_bound_on_images_in_flight() -> None:
    read = yielded = 0

    def sources() -> Iterator[Source]:
        nonlocal read
        for i in range(60):
            read += 1
            yield good(i, "slow" if i % 7 == 0 else "")

    with IsolatedDecoder(SPEC, processes=2, ahead=9) as decoder:
        for result in decoder.decoded(sources()):
            assert read - yielded <= 9
            assert result.sha256 == hashlib.sha256(png(yielded)).hexdigest()
            yielded += 1
    assert read == yielded == 60


@pytest.mark.quiet
def test_workers_decode_while_the_consumer_is_busy() -> None:
    with IsolatedDecoder(SPEC, processes=1, ahead=20) as decoder:
        run = decoder.decoded(good(i, "slow") for i in range(20))
        next(run)
        time.sleep(4.0)  # twice the time that they take
        start = time.perf_counter()
        assert len(list(run)) == 19
        assert time.perf_counter() - start < 1.0


def test_abandoned_runs() -> None:
    others = children()
    with IsolatedDecoder(SPEC, processes=1) as decoder:
        for result in decoder.decoded(good(i) for i in range(100)):
            assert code(result) == "ok"
            break
        run = decoder.decoded(good(i) for i in range(5))
        next(run)
        with pytest.raises(UsageError, match="decoding other sources"):
            next(decoder.decoded([good(1)]))
        run.close()

        def failing() -> Iterable[Source]:
            yield good(1)
            raise OSError("the list could not be read")

        with pytest.raises(OSError, match="the list"):
            list(decoder.decoded(failing()))
        assert [result.sha256 for result in decoder.decoded([good(7)])] == [hashlib.sha256(png(7)).hexdigest()]
        run = decoder.decoded(good(i, "slow") for i in range(100))
        next(run)
        workers = children() - others
        assert workers
    assert not workers & children()
    with pytest.raises(UsageError, match="closed"):
        list(run)
    with pytest.raises(UsageError, match="closed"):
        list(decoder.decoded([]))


def test_a_decoder_that_is_not_closed() -> None:
    decoder = IsolatedDecoder(SPEC, processes=1)
    assert [code(result) for result in decoder.decoded([good(1)])] == ["ok"]
    del decoder  # the fixture checks that its process has ended


def test_memory_use_is_constant() -> None:
    others = children()

    def used() -> float:
        server = started_since(others)
        processes = (os.getpid(), server, *children(server))
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in processes]
        return sum(pages) * resource.getpagesize() / 1e6

    spec = InputSpec(height=128, width=128)  # 49 kB: the pixels of the second run are 69 MB in total
    with IsolatedDecoder(spec, processes=2) as decoder:
        assert sum(code(result) == "ok" for result in decoder.decoded(good(i) for i in range(70))) == 70
        before = used()
        assert sum(code(result) == "ok" for result in decoder.decoded(good(i) for i in range(1400))) == 1400
        assert used() - before < 10


def test_invalid_arguments_are_refused() -> None:
    for arguments in (
        dict(processes=0),
        dict(timeout=0.0),
        dict(ahead=-1),
        dict(mode="quick"),
        dict(policy="none"),
        dict(spec=InputSpec(channels=1, mean=(0.5,), std=(0.5,))),
    ):
        with pytest.raises(UsageError) as error:
            IsolatedDecoder(**dict(spec=SPEC) | arguments)
        assert error.value.code == "bad_argument"


def test_sources_that_cannot_be_sent() -> None:
    @dataclass(frozen=True)
    class Local(Source):
        pass

    with IsolatedDecoder(SPEC, processes=1) as decoder:
        with pytest.raises(UsageError, match="Local cannot be sent"):
            list(decoder.decoded([Local("a", "a")]))
        assert [code(result) for result in decoder.decoded([good(1)])] == ["ok"]


# --- processes --------------------------------------------------------------------------------------------------------


def script(text: str, folder: Path) -> list[str]:
    (folder / "script.py").write_text(
        "import os, signal, sys, time\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'src')!r}]\n"
        "from tessella.data.isolated import IsolatedDecoder\n"
        "from tests.data.test_isolated import SPEC, bad, code, good\n" + text
    )
    return [sys.executable, str(folder / "script.py")]


def test_workers_import_neither_torch_nor_the_callers_script(tmp_path: Path) -> None:
    text = """
with open("imported", "a") as file:
    file.write(__name__ + "\\n")
decoder = IsolatedDecoder(SPEC, processes=1)
(result,) = decoder.decoded([bad("report")])
pid, torch = result.error.message.split()
assert int(pid) != os.getpid()
print(torch)
class Mine(type(bad("report"))):
    pass
try:
    list(decoder.decoded([Mine("a", "a")]))
except ValueError as error:
    print(error.code)
"""  # it ends without closing the decoder
    done = subprocess.run(script(text, tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False\nbad_argument\n", "")
    assert (tmp_path / "imported").read_text() == "__main__\n"


def test_a_caller_that_ignores_sigchld(tmp_path: Path) -> None:
    text = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
with IsolatedDecoder(SPEC, processes=2) as decoder:
    for result in decoder.decoded([good(1), bad("segv"), good(2)]):
        print(code(result), result.error and "SIGSEGV" in result.error.message)
"""
    done = subprocess.run(script(text, tmp_path), capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("ok None\ndecoder_crashed True\nok None\n", "")


def test_a_killed_parent_leaves_no_worker(tmp_path: Path) -> None:
    text = f"""
with IsolatedDecoder(SPEC, processes=2) as decoder:
    list(decoder.decoded(bad("hang", os.path.join({str(tmp_path)!r}, f"at-{{i}}")) for i in range(20)))
"""
    with subprocess.Popen(script(text, tmp_path)) as parent:
        wait_until(lambda: len(list(tmp_path.glob("at-*"))) == 2)  # both are decoding an image
        (server,) = children(parent.pid)
        workers = children(server)
        assert len(workers) == 2
        parent.kill()
    wait_until(lambda: not any(is_running(pid) for pid in (server, *workers)), seconds=5)


def is_running(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )  # orphans may remain as zombies
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_interrupts_are_handled_by_the_caller(tmp_path: Path) -> None:
    """Ctrl-C reaches the whole process group: workers continue or end silently, as the caller decides."""
    text = """
signal.signal(signal.SIGINT, lambda *_: print("heard"))
with IsolatedDecoder(SPEC, processes=1) as decoder:
    reports = []
    for i, result in enumerate(decoder.decoded([bad("report"), *(good(i, "slow") for i in range(20)), bad("report")])):
        if i == 5:
            os.killpg(0, signal.SIGINT)
        if i in (0, 21):
            reports.append(str(result.error))
        else:
            assert code(result) == "ok"
    assert reports[0] == reports[1], "not the same process"
signal.signal(signal.SIGINT, signal.default_int_handler)
with IsolatedDecoder(SPEC, processes=1) as decoder:
    try:
        for result in decoder.decoded(good(i, "slow") for i in range(20)):
            os.killpg(0, signal.SIGINT)
    except KeyboardInterrupt:
        print("stopped")
"""
    done = subprocess.run(
        script(text, tmp_path), capture_output=True, text=True, timeout=60, start_new_session=True, check=True
    )
    assert (done.stdout, done.stderr) == ("heard\nstopped\n", "")
