"""Starting is cheap: what the package and the command line import, and how long they take."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def best_seconds(command: list[str], rounds: int = 5, status: int = 0) -> float:
    """Wall time of the fastest of some runs: other work on the machine can only add to it."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        assert subprocess.run(command, capture_output=True).returncode == status
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


CAT = str(Path(__file__).resolve().parents[2] / "examples" / "cat.jpg")


@pytest.mark.quiet
@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [
        (["--help"], 0.25),
        (["list"], 0.5),
        (["info"], 0.5),
        (["info", "convit_base.fb_in1k"], 0.5),
        (["classify", CAT], 1.2),
        (["embed", CAT], 1.2),
    ],
    ids=lambda value: "-".join(value[:1]) if isinstance(value, list) else "",
)
def test_commands_start_fast(arguments: list[str], seconds: float) -> None:
    assert best_seconds([sys.executable, "-m", "tessella", *arguments]) < seconds


@pytest.mark.quiet
def test_a_small_run_is_searched_within_a_second_and_a_half(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    for arguments in (["run", str(Path(CAT).parent), "--out", out], ["index", out]):
        subprocess.run([sys.executable, "-m", "tessella", *arguments], capture_output=True, check=True)
    assert best_seconds([sys.executable, "-m", "tessella", "search", out, CAT]) < 1.5


@pytest.mark.parametrize(
    "arguments", [["classify", CAT], ["embed", CAT], ["classify", CAT, CAT, "--mode", "throughput"]]
)
def test_running_a_model_imports_only_what_it_needs(arguments: list[str]) -> None:
    unneeded = {"torch", "pyarrow", "pandas", "scipy", "matplotlib", "lancedb", "openvino.tools.ovc", "asyncio"}
    assert imported(arguments, status=0).isdisjoint(unneeded)


def test_making_a_model_imports_no_symbolic_mathematics() -> None:
    """PyTorch's meta functions in Python bring sympy, 0.7 s."""
    run("import sys, tessella; tessella.load(mode='latency'); assert 'sympy' not in sys.modules")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["list", "mixer"],
        ["list", "--json"],
        ["list", "--compare", "--sort", "speed"],
        ["classify", "--help"],
        ["info"],
        ["info", "mixer_b16_224"],
    ],
    ids=" ".join,
)
def test_commands_without_a_model_do_not_import_torch(arguments: list[str]) -> None:
    assert imported(arguments, status=0).isdisjoint({"torch", "pyarrow", "numpy"})


WRONG = [
    (["classify", "nope.jpg"], 3),
    (["embed", "nope.jpg", "--out", "FOLDER/x.npz"], 3),
    (["features", "nope.jpg"], 3),
    (["explain"], 2),
    (["explain", "FOLDER/a.jpg", "--like", "nope.jpg"], 3),
    (["explain", "FOLDER/a.jpg", "-m", "resnet50"], 2),
    (["explain", "--weights", "resnet50", "-o", "FOLDER"], 2),
    (["explain", "--weights", "convit_tiny"], 2),
    (["classify", "nope/*.jpg", "--json"], 3),
    (["classify", "@nope.txt"], 3),
    (["run", "nope", "-o", "FOLDER/run"], 3),
    (["train", "nope", "-o", "FOLDER/run"], 3),
    (["probe", "nope"], 3),
    (["evaluate", "nope"], 3),
    (["inspect", "nope"], 3),
    (["inspect", "FOLDER", "--remove", "nope"], 2),
    (["verify-run", "nope"], 3),
    (["index", "nope"], 3),
    (["search", "nope", "x"], 3),
    (["dedup", "nope"], 3),
    (["convert", "nope.pth"], 4),
    (["export", "local-dir:nope", "FOLDER/out"], 4),
    (["export", "convmixer_768_33", "FOLDER/out"], 2),
    (["tune", "convmixer_768_33"], 2),
    (["bench", "convmixer_768_33"], 2),
    (["info", "convmixer_768_33"], 2),
    (["list", "resnet50"], 2),
    (["classify", "FOLDER", "--checkpoint", "nope"], 4),
    (["classify", "FOLDER/a.jpg", "--images", "nope"], 3),
    (["classify", "FOLDER/a.jpg", "--out", "nope/x.csv"], 2),
    (["classify", "FOLDER/a.jpg", "-m", "gmixer_12_224"], 2),
    (["classify", "FOLDER/a.jpg", "--device", "meta"], 2),
    (["classify", "FOLDER/a.jpg", "--engine", "steam"], 2),
]


@pytest.mark.parametrize(
    ("arguments", "status"), WRONG, ids=lambda value: "-".join(value) if isinstance(value, list) else ""
)
def test_wrong_arguments_and_paths_are_reported_without_importing_torch(
    arguments: list[str], status: int, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"junk")
    command = [one.replace("FOLDER", str(tmp_path)) for one in arguments]
    assert "torch" not in imported(command, status)


@pytest.mark.quiet
@pytest.mark.parametrize("arguments", [["classify", "nope.jpg"], ["train", "nope", "-o", "run"], ["dedup", "nope"]])
def test_a_wrong_path_is_reported_within_a_second(arguments: list[str], tmp_path: Path) -> None:
    assert best_seconds([sys.executable, "-m", "tessella", *arguments], rounds=3, status=3) < 1


def imported(arguments: list[str], status: int) -> set[str]:
    """The modules that are loaded when `tessella ARGUMENTS` ends, with this status, in another process."""
    code = (
        "import sys; from tessella import cli\n"
        f"sys.argv = ['tessella', *{arguments!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as stop: print('\\nSTATUS', stop.code or 0, *sys.modules)"
    )
    _, found_status, *modules = run(code).splitlines()[-1].split()
    assert int(found_status) == status
    return set(modules)


def test_packages_are_attributes_and_import_no_torch() -> None:
    names = (
        "bulk",
        "data",
        "evaluation",
        "explain",
        "inspection",
        "performance",
        "search",
        "training",
        "utils",
    )  # models define torch modules
    code = f"import sys, tessella; [getattr(tessella, name) for name in {names}]; print('torch' in sys.modules)"
    assert run(code).strip() == "False"


def test_public_names_resolve() -> None:
    import tessella

    for name in dir(tessella):
        assert getattr(tessella, name) is not None
    with pytest.raises(AttributeError, match="No tessella attribute resnet"):
        tessella.resnet  # type: ignore[attr-defined]  # noqa: B018
