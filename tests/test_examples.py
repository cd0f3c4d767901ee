"""The programs in examples/ run as their docstrings say; tests/test_export.py runs run_export.py."""

from __future__ import annotations

import ast
import csv
import json
import re
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image

import tessella
from tessella.results import Assessment, Prediction, Record

from . import base_install, notebook
from .structure import ROOT, code_lines, parse

EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py"))
TABLE = (EXAMPLES / "README.md").read_text()


def run_program(
    name: str, *arguments: str | Path, folder: Path = ROOT, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def lines_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# --- all of them ------------------------------------------------------------------------------------------------------


def test_the_table_lists_every_program_and_the_notebook() -> None:
    assert len(PROGRAMS) == 5
    assert re.findall(r"^\| `(\w+\.(?:py|ipynb))` \|", TABLE, re.M) == [*PROGRAMS, "tour.ipynb"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_short_and_say_how_they_are_run(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    assert 20 <= code_lines(parse(text, name)) <= 60
    assert f"    python examples/{name} " in (ast.get_docstring(ast.parse(text), clean=False) or "")


# --- classify.py ------------------------------------------------------------------------------------------------------


def test_classify_gives_calibrated_answers_in_the_order_of_the_inputs() -> None:
    lines = lines_of(run_program("classify.py", "examples", "missing.jpg"))
    keys, answers = zip(*(line.split(": ", 1) for line in lines), strict=True)
    names = [f"examples/{name}.jpg" for name in ("astronaut", "cat", "coffee", "rocket")]
    assert list(keys) == [*names, "missing.jpg"]
    assert answers[4].startswith("not classified: not_found")
    model = tessella.load("convmixer_256_8_ks3_p4.cifar10")
    for answer, record in zip(answers, model.records([ROOT / name for name in names]), strict=False):
        assert f"{record.top[0].label}, " in answer
        assert record.assessment is not None
        assert answer.startswith("unknown; ") == record.assessment.unknown
    assert answers[1].startswith("cat, 9")
    assert answers[2].startswith("unknown; the most similar class is ")


def test_classify_runs_another_model() -> None:
    (line,) = lines_of(run_program("classify.py", "--model", "convmixer_384_8_ks5_p8.photographs", "examples/cat.jpg"))
    assert line.startswith("examples/cat.jpg: Egyptian cat, ")


def test_classify_names_every_class_of_a_prediction_set_or_says_that_there_is_none() -> None:
    describe = runpy.run_path(str(EXAMPLES / "classify.py"))["describe"]
    cat, dog = Prediction(3, "cat", 0.7), Prediction(5, "dog", 0.2)
    sure = Record("a", "ok", top=(cat, dog), assessment=Assessment((cat,), unknown=False, familiarity=0.5))
    unsure = Record("a", "ok", top=(cat, dog), assessment=Assessment((cat, dog), unknown=False, familiarity=0.5))
    assert describe(sure) == "cat, 70.0 %"
    assert describe(unsure) == "cat, 70.0 %, or dog"
    assert describe(Record("a", "ok", top=(cat, dog))).startswith("cat, 70.0 % (this model is not calibrated")


# --- find_duplicates.py -----------------------------------------------------------------------------------------------


def test_find_duplicates_lists_exact_and_near_copies(tmp_path: Path) -> None:
    photos = Path(shutil.copytree(ROOT / "clothing" / "hat", tmp_path / "photos"))
    shutil.copy(photos / "0613.jpg", photos / "copy.jpg")
    with Image.open(photos / "0614.jpg") as image:
        image.resize((image.width * 3 // 4, image.height * 3 // 4)).save(photos / "small.jpg", quality=70)
    (photos / "bad.jpg").write_text("not an image")
    before = {path: path.read_bytes() for path in photos.iterdir()}
    lines = lines_of(run_program("find_duplicates.py", photos, tmp_path / "list.csv"))
    assert lines[0] == "1 not compared: unsupported_format"
    assert lines[-1].startswith("2 of 26 images are duplicates of another one")
    with (tmp_path / "list.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["cluster"], row["kind"], Path(row["key"]).name) for row in rows] == [
        ("0", "kept", "0613.jpg"),
        ("0", "same", "copy.jpg"),
        ("1", "kept", "0614.jpg"),
        ("1", "near", "small.jpg"),
    ]
    for row in rows:
        assert any(row["key"] in line and f"{row['width']}x{row['height']}" in line for line in lines)
    assert {path: path.read_bytes() for path in photos.iterdir()} == before


# --- fine_tune.py -----------------------------------------------------------------------------------------------------


def test_fine_tune_makes_a_calibrated_model(tmp_path: Path) -> None:
    text = "\n".join(lines_of(run_program("fine_tune.py", "clothing", tmp_path / "run")))
    assert "epoch 1: top-1 " in text
    assert "calibrated on 42 validation images" in text
    accuracy = re.search(r"accuracy ([\d.]+) % on 42 held-out images", text)
    assert accuracy
    assert float(accuracy[1]) > 80
    assert re.search(r"prediction sets: [\d.]+ % contain the right class\nprediction sets: [\d.]+ classes", text)
    model = tessella.load(f"local-dir:{tmp_path / 'run'}")
    assert set(model.labels) == {"hat", "pants", "shoes"}
    assert model.calibration is not None
    assert json.loads((tmp_path / "run" / "train.json").read_text())["config"]["epochs"] == 2
    assert (tmp_path / "run" / "report" / "report.md").is_file()


# --- serve_and_call.py ------------------------------------------------------------------------------------------------


def test_serve_and_call_gets_the_same_answers_twice_and_leaves_no_server() -> None:
    lines = lines_of(run_program("serve_and_call.py", "examples/cat.jpg", "examples/coffee.jpg"))
    address = re.fullmatch(r"the server is ready at http://(.+):(\d+)", lines[0])
    assert address
    assert lines[1].startswith("Client: examples/cat.jpg is cat, 9")
    assert lines[3] == "Client: embeddings (2, 384)"
    assert lines[4:] == [
        "HTTP: examples/cat.jpg is cat, unknown: False",
        lines[2].partition(",")[0].replace("Client", "HTTP") + ", unknown: True",
        "the server has stopped, exit status 0",
    ]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address[1], int(address[2])), timeout=5)


def test_serve_and_call_says_why_the_server_did_not_start() -> None:
    done = run_program("serve_and_call.py", "examples/cat.jpg", environment=base_install.environment())
    assert done.returncode == 1
    assert "pip install " in done.stderr
    assert done.stderr.splitlines()[-1] == "the server did not start: its message is above"


# --- tour.ipynb -------------------------------------------------------------------------------------------------------


def test_the_notebook_runs_and_shows_what_it_stores() -> None:
    stored, executed = notebook.read(), notebook.read()
    notebook.execute(executed, EXAMPLES)
    for before, after in zip(stored.cells, executed.cells, strict=True):
        if before.cell_type == "code":
            assert notebook.shown(after) == notebook.shown(before), "run `python -m tests.notebook`"


def test_the_notebook_is_small_and_the_same_on_every_machine() -> None:
    stored = notebook.read()
    assert notebook.PATH.stat().st_size < 200_000
    assert stored.metadata == notebook.METADATA
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(cell.metadata == {} for cell in stored.cells)
    assert sum("image/jpeg" in output.get("data", {}) for cell in code for output in cell.outputs) >= 3
    assert all(output.get("name") != "stderr" for cell in code for output in cell.outputs)  # has paths of a machine


def test_outputs_are_compared_by_what_they_show() -> None:
    stream = nbformat.v4.new_output("stream", name="stdout", text="cat 99.1 %\n")
    changed = nbformat.v4.new_output("stream", name="stdout", text="dog 99.1 %\n")
    digits = nbformat.v4.new_output("stream", name="stdout", text="cat 99.2 %\n")
    picture = nbformat.v4.new_output("execute_result", data={"image/jpeg": "abcd", "text/plain": "<Image>"})

    def shown(output: object) -> list[object]:
        return notebook.shown(nbformat.v4.new_code_cell(outputs=[output]))

    assert shown(stream) == shown(digits)
    assert shown(stream) != shown(changed)
    assert shown(picture) == [("execute_result", ["image/jpeg", "text/plain"], "")]
