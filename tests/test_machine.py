"""What the package finds out about the CPU and the GPU without PyTorch."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from tessella import machine
from tessella.engine.plan import has_native_bfloat16

AVX2 = "fpu sse2 ssse3 fma sse4_2 avx f16c avx2 bmi2"
AVX512 = f"{AVX2} avx512f avx512dq avx512cd avx512bw avx512vl"
FLAGS = {  # excerpts from the lists of real CPUs
    "Haswell": (AVX2, "avx2", "AVX2"),
    "Alder Lake": (f"{AVX2} avx_vnni", "avx2_vnni", "AVX2-VNNI"),
    "Knights Landing": (f"{AVX2} avx512f avx512pf avx512er avx512cd", "avx2", "AVX2"),  # without BW, DQ and VL
    "Skylake": (AVX512, "avx512", "AVX512"),
    "Cascade Lake": (f"{AVX512} avx512_vnni", "avx512_vnni", "AVX512-VNNI"),
    "Zen 5": (f"{AVX512} avx_vnni avx512_bf16 avx512_vnni", "avx512_bf16", "AVX512-BF16"),
    "Sapphire Rapids": (f"{AVX512} avx_vnni avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8", "amx", "AMX"),
    "Neoverse V1": ("fp asimd aes atomics fphp asimdhp asimddp sve i8mm bf16", "neon", "NEON"),
    "Nehalem": ("fpu sse2 ssse3 sse4_2", "other", "no vector instructions known"),
}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    machine.vector_features.cache_clear()
    has_native_bfloat16.cache_clear()
    yield
    machine.vector_features.cache_clear()
    has_native_bfloat16.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, flags: str, key: str = "flags") -> None:
    monkeypatch.setattr(machine, "_cpu_line", lambda wanted: flags if wanted == key else "")


@pytest.mark.parametrize("cpu", FLAGS)
def test_the_class_is_the_best_instruction_set(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags, expected, text = FLAGS[cpu]
    pretend(monkeypatch, flags, "Features" if "asimd" in flags else "flags")
    assert machine.cpu_class() == expected
    assert machine.hardware("cpu").endswith(f"cores, {text}")


def test_features_have_names_that_do_not_depend_on_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, FLAGS["Cascade Lake"][0])
    linux = machine.vector_features()
    assert linux == {"avx2", "fma", "avx512", "avx512_vnni"}
    machine.vector_features.cache_clear()
    pretend(monkeypatch, "")
    numpy_names = {"AVX2", "FMA3", "AVX512F", "AVX512CD", "AVX512BW", "AVX512DQ", "AVX512VL", "AVX512VNNI"}
    monkeypatch.setattr(machine, "_numpy_features", lambda: numpy_names)
    assert machine.vector_features() == linux
    machine.vector_features.cache_clear()
    pretend(monkeypatch, FLAGS["Neoverse V1"][0], "Features")
    assert machine.vector_features() == {"neon", "dotprod", "sve", "i8mm", "bf16"}


@pytest.mark.skipif(sys.platform != "linux", reason="compares the two ways that only Linux has")
def test_numpy_finds_what_linux_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    linux = machine.vector_features()
    machine.vector_features.cache_clear()
    pretend(monkeypatch, "")
    assert machine.vector_features() == linux - {"avx_vnni", "amx_bf16", "amx_int8", "amx_fp16", "i8mm", "bf16"}
    assert linux, "the machines that run this test have vector instructions"


def test_native_bfloat16_is_what_pytorch_finds() -> None:
    torch = pytest.importorskip("torch")
    checks = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)
    assert has_native_bfloat16("cpu") == any(check() for check in checks)


@pytest.mark.parametrize("cpu", FLAGS)
def test_bfloat16_is_native_with_its_own_instructions(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, FLAGS[cpu][0])
    assert has_native_bfloat16("cpu") == (cpu in ("Zen 5", "Sapphire Rapids"))


def cuda_driver(monkeypatch: pytest.MonkeyPatch, devices: int, status: int = 0) -> list[str]:
    """Pretend that the CUDA driver reports this number of devices; returns the names of the libraries opened."""
    opened: list[str] = []

    def count(target: object) -> int:
        target._obj.value = devices  # type: ignore[attr-defined]  # what `byref` was given
        return 0

    def open_library(name: str) -> SimpleNamespace:
        opened.append(name)
        return SimpleNamespace(cuInit=lambda flags: status, cuDeviceGetCount=count)

    monkeypatch.setattr(ctypes, "CDLL", open_library)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return opened


@pytest.mark.parametrize(("devices", "status", "expected"), [(2, 0, True), (0, 0, False), (1, 100, False)])
def test_a_gpu_is_one_that_the_driver_reports(
    devices: int, status: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cuda_driver(monkeypatch, devices, status) == []
    assert machine.may_have_gpu() is expected


@pytest.mark.parametrize("hidden", ["", "-1", " -1,0"])
def test_hidden_gpus_are_not_looked_for(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = cuda_driver(monkeypatch, devices=1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not machine.may_have_gpu()
    assert opened == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert machine.may_have_gpu()
    assert opened == ["libcuda.so.1"]


def test_no_gpu_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = cuda_driver(monkeypatch, devices=1)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not machine.may_have_gpu()
    assert opened == []


def test_an_apple_gpu_needs_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = cuda_driver(monkeypatch, devices=0)
    monkeypatch.setattr(sys, "platform", "darwin")
    for architecture, expected in (("arm64", True), ("x86_64", False)):
        monkeypatch.setattr("platform.machine", lambda architecture=architecture: architecture)
        assert machine.may_have_gpu() is expected
    assert opened == []


def test_a_missing_or_foreign_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_driver(monkeypatch, devices=1)
    for driver in (lambda name: (_ for _ in ()).throw(OSError(name)), lambda name: SimpleNamespace()):
        monkeypatch.setattr(ctypes, "CDLL", driver)
        assert not machine.may_have_gpu()


def test_a_machine_with_a_gpu_that_pytorch_uses_has_one() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        assert machine.may_have_gpu()


ASK = (
    "import sys, time; from tessella import machine; start = time.perf_counter()\n"
    "machine.cpu_class(), machine.may_have_gpu(), machine.hardware('cpu')\n"
    "print('torch' in sys.modules, time.perf_counter() - start)"
)


def ask() -> tuple[str, str]:
    """Whether PyTorch was imported to describe the machine, and the seconds that it took, in a new process."""
    imported, seconds = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, check=True
    ).stdout.split()
    return imported, seconds


def test_describing_the_machine_does_not_import_torch() -> None:
    assert ask()[0] == "False"


@pytest.mark.quiet
@pytest.mark.skipif(machine.may_have_gpu(), reason="the CUDA driver takes as long as it needs")
def test_describing_the_machine_takes_under_twenty_milliseconds() -> None:
    assert min(float(ask()[1]) for _ in range(3)) < 0.02


class TestThreadCount:
    """The number of threads follows the user's setting, the physical cores and the limit of a container."""

    @pytest.fixture(autouse=True)
    def no_setting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    @pytest.mark.parametrize(
        ("physical", "granted", "expected"), [(8, 0, 8), (8, 2, 2), (2, 8, 2), (0, 0, 16), (0, 3, 3)]
    )
    def test_cores(self, physical: int, granted: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "_physical_cores", lambda: physical)
        monkeypatch.setattr(machine, "_granted_cores", lambda: granted)
        monkeypatch.setattr(machine, "available_cores", lambda: 16)
        assert machine.thread_count() == expected

    @pytest.mark.parametrize(("value", "expected"), [("3", 3), ("5,2", 5), ("0", 8), ("many", 8), ("", 8)])
    def test_setting(self, value: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "_physical_cores", lambda: 8)
        monkeypatch.setattr(machine, "_granted_cores", lambda: 0)
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert machine.thread_count() == expected

    @pytest.mark.parametrize(
        ("text", "expected"), [("200000 100000", 2), ("150000 100000", 2), ("max 100000", 0), ("", 0), ("1 0", 0)]
    )
    def test_limit_of_a_container(self, text: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Path, "read_text", lambda _: text)
        assert machine._granted_cores() == expected

    def test_threads_of_one_core_count_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
        siblings = {"cpu0": "0,2", "cpu1": "1,3", "cpu2": "0,2", "cpu3": "1,3"}
        monkeypatch.setattr(Path, "read_text", lambda path: siblings[path.parts[-3]])
        assert machine._physical_cores() == 2


class TestTotalMemory:
    @pytest.mark.parametrize(("text", "expected"), [("4096\n", 4096), ("max\n", 4096 * 10)])
    def test_limit_of_a_container(self, text: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10}.__getitem__)
        monkeypatch.setattr(Path, "read_text", lambda _: text)
        assert machine.total_memory() == expected

    def test_a_system_that_does_not_say(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(os, "sysconf")
        monkeypatch.setattr(Path, "read_text", mock.Mock(side_effect=FileNotFoundError))
        assert machine.total_memory() == 0


class TestAvailableMemory:
    MEMINFO = "MemTotal:       24684084 kB\nMemFree:        16327748 kB\nMemAvailable:   2048 kB\nHugePages_Total:  0\n"

    @pytest.mark.parametrize(
        ("group", "expected"),
        [
            ({}, 2 << 20),
            ({"memory.max": "max"}, 2 << 20),
            (
                {"memory.max": "1000000", "memory.current": "600000", "memory.stat": "anon 5\ninactive_file 100\n"},
                400100,
            ),
            ({"memory.max": "1000", "memory.current": "1200", "memory.stat": "anon 5\ninactive_file 100\n"}, 1),
            ({"memory.max": "9000000", "memory.current": "0", "memory.stat": "inactive_file 0\n"}, 2 << 20),
        ],
        ids=["no group", "no limit", "limit", "full", "large limit"],
    )
    def test_machine_and_container(self, group: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
        def read_text(path: Path) -> str:
            if str(path) == "/proc/meminfo":
                return self.MEMINFO
            if path.name not in group:
                raise FileNotFoundError(path)
            return group[path.name]

        monkeypatch.setattr(Path, "read_text", read_text)
        assert machine.available_memory() == expected

    def test_a_system_that_does_not_say(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Path, "read_text", mock.Mock(side_effect=FileNotFoundError))
        assert machine.available_memory() == 0
