"""Starting is cheap: what the package and the command line import, and how long they take."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def best_seconds(command: list[str], rounds: int = 5) -> float:
    """Wall time of the fastest of some runs: other work on the machine can only add to it."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    return min(times)


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = run(
        "import sys, tessella; print([m for m in ('torch', 'numpy', 'PIL', 'huggingface_hub') if m in sys.modules])"
    )
    assert heavy.strip() == "[]"


@pytest.mark.quiet
def test_importing_the_package_takes_under_a_tenth_of_a_second() -> None:
    code = "import time; t = time.perf_counter(); import tessella; print(time.perf_counter() - t)"
    assert min(float(run(code)) for _ in range(3)) < 0.1


@pytest.mark.quiet
def test_help_takes_under_four_tenths_of_a_second() -> None:
    assert best_seconds([sys.executable, "-m", "tessella", "--help"]) < 0.4


@pytest.mark.quiet
def test_classifying_takes_a_second_and_a_quarter_more_than_importing_torch() -> None:
    """Importing torch is most of it, and takes two to three seconds by the machine."""
    cat = Path(__file__).resolve().parent.parent / "examples" / "cat.jpg"
    whole = best_seconds([sys.executable, "-m", "tessella", "classify", str(cat)], rounds=3)
    assert whole < 1.25 + best_seconds([sys.executable, "-c", "import torch"], rounds=3)


def test_making_a_model_imports_no_symbolic_mathematics() -> None:
    """PyTorch's meta functions in Python bring sympy, 0.7 s."""
    run("import sys, tessella; tessella.load(mode='latency'); assert 'sympy' not in sys.modules")


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["list", "--json"], ["classify", "--help"]])
def test_commands_without_a_model_do_not_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from tessella import cli\n"
        f"sys.argv = ['tessella', *{arguments!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    run(code)


def test_public_names_resolve() -> None:
    import tessella

    for name in tessella.__all__:
        assert getattr(tessella, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'resnet'"):
        tessella.resnet  # noqa: B018
