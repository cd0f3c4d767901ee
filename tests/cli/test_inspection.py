"""`tessella inspect` as a user types it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tessella.cli.inspection import label_summary
from tessella.data.datasets import open_split
from tessella.inspection.label_errors import judge_labels

from ..inspection.made import save, scene
from ..test_builtin import CIFAR10_MODEL
from .test_cli import run


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Write two classes of eight pictures each; one is a copy of another, one is damaged."""
    for number, label in enumerate(("cat", "dog")):
        for i in range(8):
            save(scene(100 * number + i, 40), tmp_path / "data" / label / f"{i}.png")
    (tmp_path / "data" / "dog" / "7.png").write_bytes((tmp_path / "data" / "dog" / "1.png").read_bytes())
    (tmp_path / "data" / "cat" / "7.png").write_bytes(b"not an image")
    return tmp_path / "data"


def test_the_table_and_the_files(small: Path, tmp_path: Path) -> None:
    out, err = run(
        "inspect",
        str(small),
        "-m",
        CIFAR10_MODEL,
        "-o",
        str(tmp_path / "out"),
        "--write-list",
        str(tmp_path / "clean.csv"),
    )
    lines = [line.split("  ")[0].strip() for line in out.splitlines()]
    assert "Unreadable images" in lines
    assert "Exact duplicates" in lines
    assert "cat/7.png: unsupported_format" in out
    assert f"the report is in {tmp_path}/out/report/index.html" in err
    assert f"{tmp_path}/clean.csv lists 1" in err
    assert "the data have one split" in err
    train, val = open_split(tmp_path / "clean.csv", val_fraction=0.3)
    assert "cat/7.png" not in {Path(part.key(i)).as_posix()[-9:] for part in (train, val) for i in range(len(part))}


@pytest.mark.parametrize(("wrong", "text"), [(0, "0 labels are"), (1, "1 label is"), (2, "2 labels are")])
def test_the_number_of_wrong_labels_is_a_sentence(wrong: int, text: str) -> None:
    judged = judge_labels(np.full((4, 2), 0.5, np.float32), np.array([0, 0, 1, 1]))
    assert label_summary(dataclasses.replace(judged, estimated=wrong)).endswith(f"about {text} wrong")


def test_json(small: Path) -> None:
    summary = json.loads(run("inspect", str(small), "-m", CIFAR10_MODEL, "--json")[0])
    assert summary["images"] == 16
    assert summary["findings"]["unreadable"] == 1
    assert summary["findings"]["exact_duplicate"] == 1
    assert summary["list_images"] is None


def test_the_built_in_model_is_named_with_the_reason(small: Path) -> None:
    _, err = run("inspect", str(small))
    assert "model: convmixer_384_8_ks5_p8.photographs, the built-in model" in err


def test_training_is_suggested_only_for_a_list_of_training_images(small: Path, tmp_path: Path) -> None:
    (tmp_path / "held-out").mkdir()
    shutil.copytree(small, tmp_path / "held-out" / "test")
    command = ("-m", CIFAR10_MODEL, "--write-list", str(tmp_path / "clean.csv"))
    assert "tessella train" in run("inspect", str(small), *command)[1]
    _, err = run("inspect", str(tmp_path / "held-out"), *command)
    assert "clean.csv lists " in err
    assert "tessella train" not in err


def test_the_kinds_to_remove_can_be_chosen(small: Path, tmp_path: Path) -> None:
    command = ("inspect", str(small), "-m", CIFAR10_MODEL, "--write-list", str(tmp_path / "clean.csv"))
    run(*command, "--remove", "unreadable")
    assert (tmp_path / "clean.csv").read_text().count("\n") == 16
    run(*command, "--remove", "unreadable,exact_duplicate")
    assert (tmp_path / "clean.csv").read_text().count("\n") == 15


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["absent"], 3, "absent"),
        (["{}"], 3, "no image"),
        (["{}/data", "--write-list", "clean.txt"], 2, ".csv"),
        (["{}/data", "--remove", "everything"], 2, "choose from unreadable"),
        (["{}/data", "--near", "2"], 2, "--near"),
        (["{}/data", "-m", "convmixer_768_33"], 2, "convmixer_768_32"),
        (["{}/plain", "--write-list", "clean.csv"], 2, "no labels"),
    ],
)
def test_wrong_usage(arguments: list[str], status: int, says: str, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    if len(arguments) > 1:
        for label in "ab":
            save(scene(1, 32), tmp_path / "data" / label / "1.png")
        save(scene(1, 32), tmp_path / "plain" / "1.png")
    arguments = [argument.format(tmp_path) for argument in arguments]
    _, err = run("inspect", *arguments, status=status, cwd=tmp_path)
    assert says in err


STOPPING = """
import time
from tessella.cli import main
from tessella.inspection import measuring

def write_and_wait(*arguments):
    write(*arguments)
    time.sleep(600)  # until it is interrupted

measuring.PART_IMAGES = 8
write, measuring._write_part = measuring._write_part, write_and_wait
main()
"""


def test_an_interrupt_is_status_130_and_the_parts_remain(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["inspect", str(small), "-m", CIFAR10_MODEL, "-o", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPING, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        # a test run that was itself started in the background hands down ignored interrupts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not [*out.glob("parts/part-*.npz")]:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "interrupted" in err
    assert [path.name for path in out.glob("parts/part-*.npz")] == ["part-000000.npz"]
    assert json.loads(run(*arguments, "--json")[0])["images"] == 16
