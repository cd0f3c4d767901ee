"""tessella explain as a person meets it: text, files, pages, JSON; bad inputs and options; every kind of input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tessella
from tessella.errors import OutputError, WeightsError
from tessella.explain import Explanation
from tessella.explain.storage import read_arrays
from tessella.weights.catalogue import default_model

from ..explain.made import make_explanation
from .test_cli import CAT, EXAMPLES, run

COFFEE = str(EXAMPLES / "coffee.jpg")
FAST = "--no-scores"
OUT = ("--out", "new")
TOKEN_MODEL = "convit_ti_p4_32.cifar10"


def test_text_states_class_method_scores_and_verdict() -> None:
    out, err = run("explain", CAT)
    lines = out.splitlines()
    assert lines[0] == CAT
    assert lines[1].startswith("  class        cat 99.2 %; others: frog ")
    assert lines[2].startswith("  method       ")
    assert "ConvMixer" in lines[2]
    for line, name in zip(lines[3:6], ("deletion", "insertion", "correlation"), strict=True):
        assert line.startswith(f"  {name}")
        assert "random maps" in line
        assert "is better)" in line
    assert lines[6].startswith("  verdict      ")
    assert "--out FOLDER" in err


def test_the_default_model_is_that_of_classify() -> None:
    (row,) = rows(run("explain", CAT, FAST, "--json")[0])
    assert row["model"] == default_model("classify")
    (row,) = rows(run("explain", CAT, "--like", COFFEE, "--json")[0])
    assert row["model"] == default_model()


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_json_has_one_object_per_image_and_class(tmp_path: Path) -> None:
    out, err = run(
        "explain", CAT, "nope.jpg", "--class", "cat", "--class", "5", "--json", "--out", str(tmp_path / "new")
    )
    first, second, third = rows(out)
    assert (first["status"], second["status"], third["status"]) == ("ok", "ok", "not_found")
    assert (first["target"]["label"], second["target"]["label"]) == ("cat", "dog")
    assert set(first["scores"]) == {"deletion", "insertion", "correlation"}
    assert np.array(first["map"]).ndim == 2
    assert [Path(name).name for name in first["files"]] == ["cat.cat.explained.png", "cat.cat.explained.npz"]
    assert "1 of 2 inputs read, 1 bad" in err


def test_a_folder_gets_a_figure_and_arrays_of_each_image(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "a").mkdir(parents=True)
    shutil.copy(CAT, folder / "cat.jpg")
    shutil.copy(COFFEE, folder / "a" / "cat.jpg")
    (folder / "bad.jpg").write_bytes(Path(CAT).read_bytes()[:3000])
    before = (folder / "cat.jpg").read_bytes()
    out, err = run("explain", str(folder), FAST, "--out", str(folder))  # into the folder of the images
    assert (folder / "cat.jpg").read_bytes() == before
    names = ["cat-2.explained.npz", "cat-2.explained.png", "cat.explained.npz", "cat.explained.png"]
    assert sorted(path.name for path in folder.glob("*.explained.*")) == names
    assert f"{folder / 'cat.explained.png'}" in out
    assert "wrote 4 files" in err
    assert "bad.jpg: corrupt_image" in err
    keys = {Explanation.load(path).key for path in folder.glob("*.npz")}
    assert keys == {str(folder / "cat.jpg"), str(folder / "a" / "cat.jpg")}
    again, err = run("explain", str(folder), FAST, "--out", str(folder))  # explains the photographs only
    assert again == out
    assert "skipped 4 outputs of Tessella" in err
    assert sorted(path.name for path in folder.glob("*.explained.*")) == names


def test_a_page_has_every_image_and_the_errors(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    _, err = run("explain", CAT, "nope.jpg", COFFEE, FAST, "--out", str(page))
    text = page.read_text()
    assert text.count("<article") == 3
    assert "not_found" in text
    assert "wrote 1 file to" in err
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_one_image_can_be_written_to_a_file(tmp_path: Path) -> None:
    run("explain", CAT, FAST, "--out", str(tmp_path / "x.png"))
    run("explain", CAT, FAST, "--out", str(tmp_path / "x.npz"))
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert Explanation.load(tmp_path / "x.npz").target.label == "cat"


def test_two_classes_are_compared() -> None:
    out, _ = run("explain", CAT, "--versus", "dog", FAST)
    assert "cat 99.2 %, not dog 0.1 %; others: frog" in out
    assert "not scored" in out
    _, err = run("explain", CAT, "--versus", "cat", FAST, status=3)
    assert "bad_argument: its predicted class is 'cat'" in err


def test_an_image_counts_once_whatever_the_number_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    from tessella.explain.methods import attribute as original

    def attribute(subject: Any, image: Any, target: int, *arguments: Any, **options: Any) -> Any:
        if image.key == CAT and target == 5:
            raise WeightsError("non_finite", "the attribution map contains NaN or infinity")
        return original(subject, image, target, *arguments, **options)

    monkeypatch.setattr("tessella.explain.explainer.attribute", attribute)
    classes = ("--class", "cat", "--class", "dog", "--method", "exact", FAST)
    out, err = run("explain", COFFEE, CAT, "missing.jpg", COFFEE, *classes)
    assert out.count("  class ") == 5
    assert "2 of 4 inputs read, 2 bad" in err
    _, err = run("explain", COFFEE, COFFEE, "missing.jpg", *classes)
    assert "2 of 3 inputs read, 1 bad" in err


def test_names_of_one_class_are_one_explanation(tmp_path: Path) -> None:
    same = ("--class", "cat", "--class", "CAT", "--class", "3", "--method", "exact", FAST)
    run("explain", CAT, *same, "-o", str(tmp_path / "one.png"))
    assert (tmp_path / "one.png").exists()
    out, err = run("explain", CAT, COFFEE, "missing.jpg", *same)
    assert out.count("  class ") == 2
    assert "2 of 3 inputs read, 1 bad" in err
    _, err = run("explain", CAT, *same, "--class", "dog", "-o", str(tmp_path / "two.png"), status=2)
    assert "only one explanation" in err
    out, err = run("explain", CAT, "missing.jpg", *same, "--class", "dog")
    assert "1 of 2 inputs read, 1 bad" in err


def test_models_with_few_classes_have_no_others(tmp_path: Path) -> None:
    model = tessella.create_model("resmlp_12_224", num_classes=2, img_size=32)
    tessella.save_pretrained(model, tmp_path / "model", config_overrides={"label_names": ["hat", "shoe"]})
    command = ("explain", CAT, "-m", f"local-dir:{tmp_path / 'model'}", "--method", "exact", FAST)
    assert "; others: " in run(*command)[0]
    assert "others" not in run(*command, "--class", "hat", "--versus", "shoe")[0]


def test_archives_tables_lists_and_standard_input(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as file:
        file.add(CAT, "deep/cat.jpg")
        file.add(COFFEE, "coffee.jpg")
    (tmp_path / "list.txt").write_text(f"{CAT}\n{COFFEE}\n")
    for inputs, stdin in (
        (str(tmp_path / "photos.tar"), ""),
        (f"@{tmp_path / 'list.txt'}", ""),
        (str(EXAMPLES / "c*.jpg"), ""),
        ("-", f"{CAT}\n{COFFEE}\n"),
    ):
        found = rows(run("explain", inputs, FAST, "--json", stdin=stdin)[0])
        assert [row["status"] for row in found] == ["ok", "ok"], inputs
        assert {row["target"]["label"] for row in found} == {"cat"}


def test_statuses() -> None:
    run("explain", CAT, "nope.jpg", FAST)
    run("explain", CAT, "nope.jpg", FAST, "--strict", status=3)
    _, err = run("explain", "nope.jpg", status=3)
    assert "0 of 1 inputs read, 1 bad" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give an image"),
        ([CAT, "--class", "cta"], "similar names: cat"),
        ([CAT, "--class", "99"], "classes 0 to 9"),
        ([CAT, "--method", "magic"], "there is no method 'magic'"),
        ([CAT, "--class", "cat", "--versus", "cat"], "compared with itself"),
        ([CAT, "-m", TOKEN_MODEL, "--method", "exact"], "the next best method is"),
        ([CAT, "--like", COFFEE, "--class", "cat"], "--like and --class cannot be combined"),
        ([CAT, "--weights", TOKEN_MODEL, "--like", COFFEE, "-o", "w"], "--weights and --like cannot be combined"),
        (["--like", CAT], "give an image"),
        (["--weights", TOKEN_MODEL], "--out FOLDER"),
        ([CAT, COFFEE, "--weights", TOKEN_MODEL, "-o", "w"], "at most one image"),
        ([CAT, COFFEE, "-o", "x.png"], "only one explanation"),
        ([CAT, "-o", "x.csv"], "give a folder"),
        ([CAT, "-o", "nowhere/x.html"], "there is no folder"),
        ([CAT, "-o", "nowhere/sub"], "there is no folder 'nowhere'"),
        (["--weights", TOKEN_MODEL, "-o", "nowhere/sub"], "there is no folder 'nowhere'"),
        ([CAT, "-o", ""], "is empty"),
        (["--weights", TOKEN_MODEL, "-o", ""], "is empty"),
        (["--weights", TOKEN_MODEL, "-o", "w.png"], "give a folder"),
        (["--weights", TOKEN_MODEL, "-o", "w.pdf"], "give a folder"),
        (["--weights", TOKEN_MODEL, "-m", "x", "-o", "w"], "--weights and --model cannot be combined"),
        (["--weights", TOKEN_MODEL, "--like", "a", "-o", "w"], "--weights and --like cannot be combined"),
        (["--weights", "x", "--like", "a", "-o", "w"], "--weights and --like cannot be combined"),
        ([CAT, "--like", "a", "--class", "cat"], "--like and --class cannot be combined"),
    ],
)
def test_wrong_arguments(arguments: list[str], said: str, tmp_path: Path) -> None:
    _, err = run("explain", *arguments, status=2, cwd=tmp_path)
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_reported_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    _, err = run("explain", CAT, "-o", str(tmp_path / "taken"), status=6)
    assert "could not be written" in err


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need a privilege on Windows")
def test_a_link_without_target_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("missing")
    for arguments in ([CAT], ["--weights", "mixer_ti_p4_32.cifar10"]):
        _, err = run("explain", *arguments, "-o", "dangling", status=2, cwd=tmp_path)
        assert "'dangling' is a symbolic link whose target does not exist" in err
    assert [path.name for path in tmp_path.iterdir()] == ["dangling"]


def test_links(tmp_path: Path) -> None:
    out, _ = run("explain", CAT, "nope.jpg", "--like", COFFEE, "--out", str(tmp_path / "new"))
    assert f"  like         {COFFEE}" in out
    assert "exact: they sum to the similarity" in out
    found = read_arrays(tmp_path / "new" / "cat.links.npz")
    vectors = tessella.load().embed([CAT, COFFEE])
    assert abs(float(np.sum(found["links"])) - vectors[0] @ vectors[1]) < 1e-5
    assert f"  similarity   {float(found['cosine']):.4f}" in out.splitlines()
    run("explain", CAT, "--like", COFFEE, "--out", str(tmp_path / "links.html"))
    assert (tmp_path / "links.html").read_text().count("<img") == 1


def test_links_of_a_model_with_a_class_token_are_named_as_measured() -> None:
    (row,) = rows(run("explain", CAT, "--like", COFFEE, "-m", TOKEN_MODEL, "--json")[0])
    assert row["exact"] is False
    assert "measured by masking, not exact" in run("explain", CAT, "--like", COFFEE, "-m", TOKEN_MODEL)[0]


def test_an_image_to_compare_with_that_cannot_be_read_ends_the_command(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    run("explain", CAT, "--like", str(tmp_path / "bad.jpg"), status=3)


def test_weights(tmp_path: Path) -> None:
    out, _ = run("explain", "--weights", "mixer_ti_p4_32.cifar10", "--out", str(tmp_path / "w"))
    assert sorted(out.splitlines()) == sorted(str(path) for path in (tmp_path / "w").iterdir())
    assert all(path.suffix == ".png" for path in (tmp_path / "w").iterdir())
    text, _ = run("explain", CAT, "--weights", TOKEN_MODEL, "--out", str(tmp_path / "v"), "--json")
    assert json.loads(text)["files"]


def test_fine_tuned_models_in_a_folder(tmp_path: Path) -> None:
    model = tessella.create_model("resmlp_12_224", num_classes=2, img_size=32)
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": ["hat", "shoe <b>"]}
    torch.manual_seed(0)
    tessella.save_pretrained(model, tmp_path / "model")
    (row,) = rows(run("explain", CAT, "-m", f"local-dir:{tmp_path / 'model'}", "--method", "exact", FAST, "--json")[0])
    assert np.isclose(np.sum(row["map"]), row["total"], atol=1e-5)


def test_classes_whose_names_are_numbers(tmp_path: Path) -> None:
    model = tessella.create_model("resmlp_12_224", num_classes=3, img_size=32)
    tessella.save_pretrained(model, tmp_path / "model", config_overrides={"label_names": ["1", "2", "3"]})
    command = ("explain", CAT, "-m", f"local-dir:{tmp_path / 'model'}", "--method", "exact", FAST, "--json")
    for options, expected in (
        (["--class", "1", "--class", "3", "--class", "0"], [("1", None), ("3", None)]),  # 0: the first one again
        (["--class", "2", "--versus", "1"], [("2", "1")]),
    ):
        found = rows(run(*command, *options)[0])
        assert [(row["target"]["label"], row["versus"] and row["versus"]["label"]) for row in found] == expected
    _, err = run(*command, "--class", "9" * 5000, status=2)
    assert "there is no class" in err


def test_exported_models_have_no_module(tmp_path: Path) -> None:
    run("export", "mixer_ti_p4_32.cifar10", str(tmp_path / "exported"))
    for command in ([CAT], [CAT, "--like", COFFEE], ["--weights"]):
        given = command if "--weights" in command else [*command, "-m"]
        _, err = run("explain", *given, f"local-dir:{tmp_path / 'exported'}", *OUT, status=2, cwd=tmp_path)
        assert "exported model, which has no PyTorch module" in err
        assert "from which it was exported" in err
        assert "engine" not in err  # no engine was given


def start(command: list[str]) -> subprocess.Popen[str]:
    """Start a command that can be interrupted, also if these tests run in the background, where SIGINT is ignored."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_an_interrupt_writes_the_page_of_what_is_finished(tmp_path: Path) -> None:
    """Large models take minutes per image: the work of hours must not be lost."""
    page = tmp_path / "page.html"
    command = [sys.executable, "-m", "tessella", "explain", *[CAT] * 200, "--method", "exact", "--out", str(page)]
    with start(command) as process:
        assert process.stdout is not None
        printed = [next(process.stdout) for _ in range(8)]  # one result, and the name of the second
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert printed[0].strip() == CAT
    assert "interrupted" in err
    assert "wrote 1 file to" in err
    text = page.read_text()
    assert 2 <= text.count("Why cat?") < 200
    assert text.count("the command ended before they were explained") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_an_error_keeps_the_page_of_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = [make_explanation(key="first.jpg")]

    def fail(*_: object, **__: object) -> Iterator[Explanation]:
        yield from results
        raise OutputError("output_failed", "the disk is full")

    monkeypatch.setattr("tessella.explain.explain", fail)
    run("explain", CAT, COFFEE, FAST, "--out", str(tmp_path / "page.html"), status=6)
    assert "first.jpg" in (tmp_path / "page.html").read_text()
    results.clear()
    run("explain", CAT, COFFEE, FAST, "--out", str(tmp_path / "none.html"), status=6)
    assert not (tmp_path / "none.html").exists()


def test_an_interrupt_keeps_what_was_written(tmp_path: Path) -> None:
    """Every file that exists is complete; the status is that of other commands."""
    images = tmp_path / "in"
    images.mkdir()
    for number in range(200):
        shutil.copy(CAT, images / f"{number}.jpg")
    command = [sys.executable, "-m", "tessella", "explain", str(images), "--out", str(tmp_path / "out")]
    with start(command) as process:
        while not list(tmp_path.glob("out/*.npz")) and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err
    written = list((tmp_path / "out").iterdir())
    assert 1 < len(written) < 400
    assert {path.suffix for path in written} == {".png", ".npz"}
    for path in written:
        if path.suffix == ".npz":
            Explanation.load(path)
