"""Standard streams that are closed, full, or not UTF-8; -q and -v; text from outside on a terminal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tessella.cli.console import new_table, print_table, table_of
from tessella.cli.program import cli
from tessella.cli.progress import ProgressBars

from .test_cli import CAT, run

FULL = Path("/dev/full")


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`line` with `tessella` in it, by bash."""
    tessella = f'tessella() {{ "{sys.executable}" -m tessella "$@"; }}\n'
    return subprocess.run(["bash", "-c", tessella + line], capture_output=True, env={**os.environ, **environment})


@pytest.mark.skipif(not FULL.exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("command", ["list", "list --json", "--help", "--version", "info", "classify --csv nope.jpg"])
def test_a_full_standard_output_is_status_6(command: str) -> None:
    done = shell(f"tessella {command} >/dev/full")
    assert done.returncode == 6
    assert b"standard output could not be written: No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_closed_standard_output_is_status_6_where_something_is_printed(tmp_path: Path) -> None:
    done = shell("tessella list >&-")
    assert done.returncode == 6
    assert b"error: standard output is closed" in done.stderr
    out = tmp_path / "rows.csv"
    assert shell(f"tessella classify nope.jpg --out {out} >&-").returncode == 3  # the input's fault: nothing is printed
    assert b"not_found" in out.read_bytes()


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&-", "<&- 2>&-"])
def test_standard_error_and_input_may_be_closed_or_full(redirection: str) -> None:
    done = shell(f"tessella list convit {redirection}")
    assert done.returncode == 0
    assert b"convit_base.fb_in1k" in done.stdout


def test_an_error_has_its_status_although_nobody_can_be_told() -> None:
    assert shell("tessella info nope >&- 2>&-").returncode == 2


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    for command in ("list", "list --json"):  # rich and click end a program with status 1 on a broken pipe
        done = shell(f"tessella {command} | head -n 1; exit ${{PIPESTATUS[0]}}")
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_text_that_the_encoding_lacks_is_escaped(encoding: str) -> None:
    done = shell("tessella classify 'caf\u00e9 \u732b.jpg' --csv", PYTHONIOENCODING=encoding)
    assert done.returncode == 3
    name = {"ascii": "caf\\xe9 \\u732b", "latin-1": "caf\u00e9 \\u732b", "utf-8": "caf\u00e9 \u732b"}[encoding]
    assert done.stdout.splitlines()[1].startswith(f"{name}.jpg,not_found".encode(encoding))


def test_names_on_standard_input_need_not_be_utf8(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/b\xe9.jpg"
    Path(os.fsdecode(name)).write_bytes(Path(CAT).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "tessella", "classify", "-", "--json"], input=name + b"\n", capture_output=True
    )
    assert json.loads(done.stdout)["key"] == f"{tmp_path}/b\\xe9.jpg"
    assert done.returncode == 0


def test_every_command_has_quiet_and_verbose() -> None:
    for command in cli.commands.values():
        names = {name for parameter in command.params for name in parameter.opts}
        assert {"-q", "--quiet", "-v", "--verbose"} <= names


def test_quiet_shows_results_bad_inputs_and_errors_only(tmp_path: Path) -> None:
    out, err = run("list", "convit", "-q")
    assert "convit_base" in out
    assert err == ""
    assert run("classify", "nope.jpg", "-q", status=3)[1] == (
        "nope.jpg: not_found: there is no file 'nope.jpg'\n0 of 1 inputs read, 1 bad\n"
    )
    assert run("info", "nope", "-q", status=2)[1].startswith("error: unknown model 'nope'\n")
    assert run("classify", CAT, "-q", "--out", str(tmp_path / "rows.csv"))[1] == ""


def test_verbose_shows_the_plan_and_nothing_else_does() -> None:
    assert "precision: float32 (" in run("classify", CAT, "-v")[1]
    assert run("classify", CAT)[1] == ""
    assert "cannot be combined" in run("list", "-q", "-v", status=2)[1]


def test_the_fastest_precision_is_printed_with_its_agreement() -> None:
    said = run("classify", CAT, "--precision", "fast", "-v")[1]
    assert "the fastest that passes, per image: " in said
    is_exact = "precision: float32 (" in said  # on a busy machine, int8 can take longer
    assert ("same top class in" in said) != is_exact


def test_names_cannot_control_the_terminal(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(CAT, photos / "a\x1b[31mred\n.jpg")
    shutil.copy(CAT, photos / os.fsdecode(b"b\xe9.jpg"))
    (photos / "c\x1b]0;title\x07.jpg").write_bytes(b"junk")
    out, err = run("classify", str(photos), "-k", "1")
    assert "a\\x1b[31mred\\x0a.jpg\n" in out
    assert "b\\xe9.jpg\n" in out
    assert "c\\x1b]0;title\\x07.jpg: unsupported_format" in err
    shown = run("embed", str(photos))[0] + run("features", str(photos))[0]
    err += run("info", "\x1b[31m", status=2)[1] + run("info", "local-dir:\x1b[31m", status=4)[1]
    assert "\x1b" not in out + err + shown


def test_a_table_never_breaks_a_name_and_changes_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "20")
        patch.setenv("FORCE_COLOR", "1")  # a narrow terminal
        table = new_table("name", "note")
        table.add_row("resmlp_big_24_224.fb_distilled_in1k", "some words that may be put on several lines")
        table.add_row("[red]:cat:\x1b[0m", "[/]")
        print_table(table)
    shown = capsys.readouterr().out
    assert "resmlp_big_24_224.fb_distilled_in1k" in shown
    assert "[red]:cat:\\x1b[0m" in shown


def test_a_table_has_no_blank_lines_and_no_empty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(table_of(["name", "top-5 %", "loss"], [["a", "", "0.1"], ["b", "", ""]]))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in (lines[0], *lines[2:])] == [["name", "loss"], ["a", "0.1"], ["b"]]


def test_a_table_without_rows_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(new_table("name"))
    assert capsys.readouterr().out == ""


def test_the_list_of_commands_is_not_cut_off() -> None:
    assert "..." not in run()[0].partition("Commands:")[2]


def test_a_folder_given_as_a_model_is_answered_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "myrun").mkdir()
    for name in ("myrun", "./myrun"):
        err = run("classify", str(CAT), "-m", name, status=2, cwd=tmp_path)[1]
        assert f"for the folder write 'local-dir:{name}'" in err


def test_export_to_a_folder_in_use_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.setattr("tessella.predictor.load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert "already exists" in run("export", "default", str(tmp_path), status=2)[1]


def test_a_run_on_ray_without_ray_is_refused_before_anything_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    out, err = run("run", str(CAT), "--ray", "--out", str(tmp_path / "run"), status=2)
    assert "pip install ray" in err
    assert "listing" not in out + err
    assert not (tmp_path / "run").exists()


def test_a_run_with_bad_inputs_says_how_to_see_them(tmp_path: Path) -> None:
    command = ("run", str(CAT), "missing.jpg", "--out", str(tmp_path / "run"), "--processes", "1")
    assert "--bad-inputs FILE.csv to list the bad inputs" in run(*command)[1]
    assert "to list the bad inputs" not in run(*command, "--quarantine", str(tmp_path / "bad.csv"))[1]


def test_help_is_shown_without_a_command() -> None:
    assert "Commands:" in run()[0]


def test_similar_names_are_suggested() -> None:
    assert "Did you mean 'list'" in run("lst", status=2)[1]
    assert "Did you mean '--json'" in run("info", "mixer_b16_224", "--jsn", status=2)[1]
    assert "Did you mean one of: '--epochs', " in run("train", str(CAT), "--epoch", "3", status=2)[1]


def test_former_names_of_options_are_not_suggested() -> None:
    _, messages = run("train", str(CAT), "--acumulate", "4", status=2)
    assert "No such option '--acumulate'" in messages
    assert "'--accumulate'" not in messages


@pytest.mark.parametrize(
    ("option", "setting"),
    [
        ("--optimizer", '{"optimizer": ...}'),
        ("--opt", '{"optimizer": ...}'),
        ("--optimiser", '{"optimizer": ...}'),
        ("--weight-decay=0.1", '{"weight_decay": ...}'),
        ("--mixup", '{"mixing": {"mixup": ...}}'),
        ("--hflip", '{"augmentation": {"hflip": ...}}'),
        ("--prob", '{"erasing": {"prob": ...}} or {"mixing": {"prob": ...}}'),
        ("--clip-norm", '{"max_grad_norm": ...}'),
        ("--smoothing", '{"label_smoothing": ...}'),
    ],
)
def test_a_setting_without_an_option_is_explained(option: str, setting: str) -> None:
    _, messages = run("train", str(CAT), option, "1", status=2)
    name = option.partition("=")[0]
    expected = (
        f"error: `tessella train` has no option {name}\n       put {setting} into a file and give it with --config FILE"
    )
    assert messages.strip() == expected


@pytest.mark.parametrize(
    ("command", "alternatives"),
    [
        ("embed INPUT -m mixer_s32_224", "--checkpoint FILE for your own weights or local-dir:FOLDER"),
        ("tune mixer_s32_224", "--checkpoint FILE for your own weights, local-dir:FOLDER or --random-weights"),
        ("classify INPUT -m convmixer_768_32.in1k", "--checkpoint FILE for your own weights or local-dir:FOLDER"),
        ("train INPUT -o OUT -m convmixer_768_32.in1k --batch-size 4", "local-dir:FOLDER or --scratch"),
    ],
)
def test_advice_about_missing_weights_names_options_of_the_command(
    command: str, alternatives: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    data = tmp_path / "photos"
    for name in ("cats", "dogs"):
        (data / name).mkdir(parents=True)
        for number in range(10):
            shutil.copy(CAT, data / name / f"{number}.jpg")
    words = command.replace("INPUT", str(data)).replace("OUT", str(tmp_path / "out")).split()
    _, messages = run(*words, status=2 if "mixer_s32" in command else 5)
    assert f"give {alternatives}" in messages.replace(" as the name of a saved model", "")
    for advice in ("checkpoint_path", "pretrained=False"):
        assert advice not in messages


def test_a_missing_model_folder_is_explained(tmp_path: Path) -> None:
    _, messages = run("classify", str(CAT), "-m", f"local-dir:{tmp_path / 'nope'}", status=4)
    assert f"the model folder '{tmp_path / 'nope'}' does not exist\n" in messages
    assert "give a folder that `tessella train`" in messages
    (tmp_path / "file").touch()
    assert "file' is not a folder" in run("info", f"local-dir:{tmp_path / 'file'}", status=4)[1]


def test_the_help_names_the_default_model_of_the_command() -> None:
    def unwrapped(*arguments: str) -> str:
        return " ".join(run(*arguments)[0].split()).replace("- ", "-")  # words with hyphens are wrapped, too

    for command in ("classify", "evaluate", "calibrate", "explain"):
        assert "the built-in model for CIFAR-10" in unwrapped(command, "--help")
        assert f"`{command}`" in unwrapped()
    for command in ("embed", "run", "features", "probe", "inspect"):
        assert "[default: the built-in model for photographs]" in unwrapped(command, "--help")


@pytest.mark.parametrize("command", ["train", "run", "inspect", "compare"])
def test_resuming_needs_no_option(command: str) -> None:
    assert "run the same command again to resume" in run(command, str(CAT), "--resume", status=2)[1]
    assert "No such option" in run("classify", str(CAT), "--resume", status=2)[1]


@pytest.mark.parametrize("command", ["classify", "embed", "features"])
def test_no_inputs_are_status_3(command: str, tmp_path: Path) -> None:
    assert "no inputs were given" in run(command, "-", status=3)[1]
    (tmp_path / "list.txt").write_text("")
    run(command, f"@{tmp_path / 'list.txt'}", status=3)


def test_counts_are_bounded() -> None:
    numbers = {
        (name, option.opts[-1])
        for name, command in cli.commands.items()
        for option in command.params
        if isinstance(option, click.Option) and isinstance(option.type, click.IntRange) and option.type.max is None
    }
    # training has its own checks
    assert {(name, option) for name, option in numbers if name not in ("train", "probe", "evaluate")} == set()
    run("classify", CAT, "--top", "9" * 20, status=2)
    run("classify", CAT, "--batch-size", "9" * 20, status=2)
    assert "comma-separated integers" in run("features", CAT, "--blocks", "9" * 20, status=2)[1]
    assert "comma-separated integers" in run("bench", "--batch", "9" * 20, status=2)[1]


def test_progress_bars_are_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBars() as progress:
        for done in (1, 2):
            progress("images", done, 2)
    assert (progress.bars.tasks[0].completed, progress.bars.tasks[0].total) == (2, 2)
    assert capsys.readouterr() == ("", "")
