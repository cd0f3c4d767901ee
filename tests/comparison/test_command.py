"""`tessella compare`: what it prints, real interruptions, and an index that is searched with another model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from ..cli.test_cli import run

CIFAR = "convmixer_256_8_ks3_p4.cifar10"


def test_two_precisions_of_a_model(animals: Path, tmp_path: Path) -> None:
    arguments = [CIFAR, CIFAR, str(animals), "--precision", "float32,bfloat16", "--no-speed"]
    out, _ = run("compare", *arguments, "--out", str(tmp_path / "out"))
    assert "no significant difference" in out or "all answers are the same" in out
    assert "float32, openvino" in out
    assert "bfloat16, openvino" in out
    assert (tmp_path / "out" / "comparison.html").exists()
    printed, _ = run("compare", *arguments, "--out", str(tmp_path / "out"), "--json")
    values = json.loads(printed)
    assert values == {
        name: value
        for name, value in json.loads((tmp_path / "out" / "comparison.json").read_text()).items()
        if name != "command"
    }
    assert values["agreement"]["share"] > 0.97
    assert values["accuracy"]["images"] == 300


def test_wrong_arguments_are_refused_before_a_model_is_loaded(animals: Path, tmp_path: Path) -> None:
    for arguments, message in [
        ([CIFAR, CIFAR, str(animals), "--precision", "a,b,c"], "--precision is 'a,b,c'"),
        ([CIFAR, CIFAR], "there are no images to compare them on"),
        ([CIFAR, CIFAR, str(animals), "--write-alignment", "a.json"], "use a name ending in .safetensors"),
        ([CIFAR, "unknown", str(animals)], "unknown"),
    ]:
        _, err = run("compare", *arguments, status=2)
        assert message in err
    _, err = run("compare", CIFAR, CIFAR, str(tmp_path / "missing"), status=3)
    assert "there is no file or folder" in err


STOPPING = """
import time
from tessella.cli import main
from tessella.comparison import outputs

def write_and_wait(path, data):
    write(path, data)
    if path.name == "part-00000001.npz":
        time.sleep(600)  # until a signal comes

write, outputs.write_bytes = outputs.write_bytes, write_and_wait
main()
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the command, which waits for a signal when its second part is written.

    The interrupt of a terminal, which background jobs ignore, is switched on.
    """
    return subprocess.Popen(
        [sys.executable, "-c", STOPPING, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_comparison_resumes(number: signal.Signals, shared_data: Path, tmp_path: Path) -> None:
    data, out = str(shared_data / "photos.tar"), tmp_path / "out"
    arguments = ["compare", CIFAR, CIFAR, data, "--transform", "exact,fast", "--no-speed", "--pictures", "2"]
    with start(*arguments, "--out", str(out)) as process:
        while not (out / "old" / "part-00000001.npz").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in err
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "old").iterdir() if path.suffix == ".npz"}
    assert sorted(kept) == ["part-00000000.npz", "part-00000001.npz"]
    printed, _ = run(*arguments, "--out", str(out), "--json")
    assert {name: (out / "old" / name).stat().st_mtime_ns for name in kept} == kept
    values = json.loads(printed)
    assert (values["images"], values["compared"]) == (1000, 1000)
    assert values["agreement"]["share"] > 0.9
    assert values["accuracy"] is None


def test_a_collection_is_searched_with_another_model(shared_data: Path, tmp_path: Path) -> None:
    """The same model in another precision: its fingerprint differs, so it needs an alignment."""
    photographs, collection, path = (str(tmp_path / name) for name in ("photos", "run", "bfloat16.safetensors"))
    for name in ("photos.tar", "clothing.tar"):  # an alignment needs more images than one of them has
        with tarfile.open(shared_data / name) as archive:
            members = [member for member in archive.getmembers() if "/train/" not in member.name]
            archive.extractall(photographs, members, filter="data")
    run("run", photographs, "--out", collection, "-m", CIFAR, "--precision", "float32", "--transform", "fast")
    run("index", collection)
    picture = str(sorted(Path(photographs).rglob("n*.jpg"))[7])
    query = str(shutil.copy(picture, tmp_path / "query.jpg"))  # a search leaves out the query itself
    model = ["--precision", "bfloat16", "--transform", "fast", "--no-speed"]
    _, err = run("compare", collection, CIFAR, *model, "--write-alignment", path)
    assert f"wrote {path}, fingerprint " in err
    found, _ = run("search", collection, query, "--alignment", path, "--top", "1", "--json")
    (exact,) = (json.loads(line) for line in found.splitlines())
    assert exact["key"] == picture
    assert 0.99 < exact["score"] <= 1
    _, err = run("search", collection, query, "--alignment", path, "--why", str(tmp_path / "w.html"), status=2)
    assert "leave out --alignment" in err
    _, err = run("compare", collection, "mixer_ti_p4_32", *model, "--write-alignment", path, status=2)
    assert "nearest images that those of" in err
