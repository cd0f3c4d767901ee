"""The command line as a person meets it: surface, inputs, outputs, statuses, a closed pipe, an interrupt, progress."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import tessella
from tessella._version import __version__
from tessella.cli.console import Command
from tessella.cli.options import option
from tessella.cli.program import cli, main
from tessella.errors import UsageError
from tessella.records import ASSESSED
from tessella.weights.catalogue import default_model
from tests.golden_rule import fill_golden
from tests.test_builtin import CIFAR10_MODEL

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CAT = str(EXAMPLES / "cat.jpg")

RUN_OPTIONS = [
    "--model",
    "--checkpoint",
    "--device",
    "--precision",
    "--engine",
    "--mode",
    "--images",
    "--batch-size",
    "--transform",
    "--policy",
]
CALIBRATION_OPTIONS = ["--calibration", "--no-calibration"]
SERVER_OPTIONS = ["--server", "--token-file"]
SURFACE = {
    "classify": [
        "INPUT...",
        *RUN_OPTIONS,
        *CALIBRATION_OPTIONS,
        *SERVER_OPTIONS,
        "--head",
        "--strict",
        "--top",
        "--json",
        "--csv",
        "--out",
        "--csv-safe",
    ],
    "embed": ["INPUT...", *RUN_OPTIONS, *SERVER_OPTIONS, "--strict", "--json", "--csv", "--out", "--csv-safe"],
    "features": ["INPUT...", *RUN_OPTIONS, "--strict", "--blocks", "--json", "--out"],
    "explain": [
        *("[INPUT...]", "--transform", "--policy", "--strict", "--model", "--checkpoint", "--device"),
        *CALIBRATION_OPTIONS,
        *("--class", "--versus", "--method", "--no-scores", "--like", "--weights", "--out", "--json"),
    ],
    "run": [
        *(
            "INPUT...",
            *RUN_OPTIONS,
            *CALIBRATION_OPTIONS,
            "--strict",
            "--out",
            "--top",
            "--dtype",
            "--shard-rows",
            "--processes",
            "--timeout",
        ),
        *("--bad-inputs", "--prometheus", "--ray", "--actor-cores", "--json"),
    ],
    "verify": ["TARGET", "--model", "--receipt", "--json"],
    "replay": ["RECEIPT", "[TARGET]", "--model", "--json"],
    "verify-run": ["RUN", "--repair", "--json"],
    "index": ["RUN", "--json", "--map"],
    "search": [
        *(
            "RUN",
            "QUERY...",
            "--top",
            "--negative",
            "--where",
            "--label",
            "--all-rows",
            "--model",
            "--checkpoint",
            "--alignment",
            "--sheet",
            "--why",
            "--json",
        )
    ],
    "dedup": ["RUN", "--threshold", "--exact", "--out", "--sheet", "--json"],
    "gallery": ["RUN", "--out", "--json"],
    "serve": [
        *("--model", "--index", "--host", "--port", "--token-file", "--allow-host", "--allow-urls", "--log-requests"),
        *("--transform", "--policy", "--device", "--precision", "--engine", "--batch-size", "--deadline"),
        *("--max-delay", "--queue-images", "--max-images", "--max-body", "--body-timeout", "--processes"),
        *("--drain-delay", "--drain-timeout", "--idle-minutes", "--memory", "--prove"),
        *("--no-explain", "--explain-deadline", "--no-calibration"),
    ],
    "list": [
        *("[PATTERN...]", "--pretrained", "--family", "--min-accuracy", "--max-params", "--max-gmacs", "--size"),
        *("--license", "--sort", "--machine", "--compare", "--json", "--csv", "--plot", "--html"),
    ],
    "card": ["MODEL", "--out"],
    "info": ["[MODEL]", "--json"],
    "convert": ["FILE", "--arch", "--out"],
    "doctor": ["--json"],
    "export": ["MODEL", "FOLDER", "--checkpoint", "--engine", "--precision", "--images"],
    "tune": [
        "[MODEL]",
        "--checkpoint",
        "--random-weights",
        "--precision",
        "--engines",
        "--images",
        "--seconds",
        "--json",
    ],
    "train": [
        *("DATA", "--model", "--out", "--preset", "--config", "--val", "--val-fraction", "--scratch", "--head-only"),
        *(
            "--layer-decay",
            "--epochs",
            "--batch-size",
            "--grad-accum-steps",
            "--lr",
            "--img-size",
            "--ema-decay",
            *("--teacher", "--unlabelled", "--distill-target", "--distill-weight"),
        ),
        *("--precision", "--compile", "--shard", "--device", "--workers", "--seed", "--tensorboard"),
    ],
    "probe": [
        *("DATA", "--val", "--val-fraction", "--model", "--shots", "--target-accuracy", "--seed", "--out"),
        *("--attach-to", "--json"),
    ],
    "calibrate": [
        *("DATA", "--split", "--unknown", "--model", "--checkpoint", "--device", "--precision", "--engine"),
        *("--transform", "--policy", "--coverage", "--false-alarms", "--per-class", "--detector", "--seed", "--out"),
        "--json",
    ],
    "inspect": [
        *("DATA...", "--unlabeled", "--model", "--near", "--label-margin", "--min-images", "--seed", "--out"),
        *("--write-list", "--remove", "--json"),
    ],
    "evaluate": [
        *("DATA", "--split", "--dataset", "--real-labels", "--model", "--checkpoint", "--engine", "--precision"),
        *("--device", "--batch-size", "--transform", "--policy", "--restrict", "--out", "--json"),
        *CALIBRATION_OPTIONS,
    ],
    "compare": [
        *("OLD", "NEW", "[DATA]", "--split", "--transform", "--policy", "--precision", "--engine", "--device"),
        *("--speed", "--pictures", "--write-alignment", "--out", "--json"),
    ],
    "bench": [
        *("[MODEL...]", "--engines", "--precision", "--against", "--pretrained", "--device", "--batch-size"),
        *("--rounds", "--out", "--plot", "--json"),
    ],
}


def run(*arguments: str, status: int = 0, stdin: str = "", cwd: Path | None = None) -> tuple[str, str]:
    """Standard output and error of `tessella ...`, which must end with `status`; in this process, to save its start."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["tessella", *arguments])
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        patch.chdir(cwd or Path.cwd())
        with pytest.raises(SystemExit) as stop:
            main()
    assert (stop.value.code or 0) == status, err.getvalue()
    return out.getvalue(), err.getvalue()


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "tessella", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_the_surface_changes_only_on_purpose() -> None:
    surface = {}
    for name, command in cli.commands.items():
        context = click.Context(command, info_name=name)
        surface[name] = sorted(
            param.opts[-1] if isinstance(param, click.Option) else param.make_metavar(context)
            for param in command.params
        )
    assert surface == {name: sorted([*parameters, "--quiet", "--verbose"]) for name, parameters in SURFACE.items()}


def test_every_option_and_command_has_a_help_text() -> None:
    for command in cli.commands.values():
        assert command.help
        assert all(param.help for param in command.params if isinstance(param, click.Option))


def test_every_command_has_an_example_that_parses() -> None:
    for name, command in cli.commands.items():
        assert isinstance(command, Command)
        assert command.examples
        for example in command.examples:
            program, verb, *arguments = shlex.split(example)
            assert (program, verb) == ("tessella", name)
            command.make_context(name, arguments)


def test_every_option_is_in_a_group() -> None:
    for command in cli.commands.values():
        ungrouped = {param.opts[-1] for param in command.params if getattr(param, "group", "Other") == "Other"}
        assert ungrouped == {"--quiet", "--verbose"}


def test_the_help_describes_every_value_and_no_technical_limit() -> None:
    for command in cli.commands.values():
        shown = command.get_help(click.Context(command))
        assert not re.search(r" TEXT\b| INTEGER| FLOAT| RANGE\b|1000000|9223372", shown)


def test_former_names_of_options_work_and_are_not_shown() -> None:
    @click.command(cls=Command)
    @option("--batch-size", "batch_size", type=int, group="Advanced", aliases=["--batch"], help="Batch size.")
    def command(batch_size: int) -> None: ...

    assert command.make_context("command", ["--batch", "8"]).params["batch_size"] == 8
    assert command.make_context("command", ["--batch-size", "4"]).params["batch_size"] == 4
    shown = command.get_help(click.Context(command))
    assert "Advanced:\n  --batch-size INTEGER  Batch size." in shown
    assert "--batch " not in shown


def test_classify_for_people() -> None:
    done = process("classify", "-v", "--top", "2", CAT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == CAT
    assert sum(bool(re.match(r" +[\d.]+ %  \w", line)) for line in lines) == 2
    assert f"model: {default_model('classify')}\n" in done.stderr
    assert "precision: float32 (" in done.stderr


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder with two good images, a broken one and one that is none; names in natural order."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(CAT, folder / "a2.jpg")
    shutil.copy(EXAMPLES / "coffee.jpg", folder / "deep" / "z.jpg")
    (folder / "a10.jpg").write_bytes(Path(CAT).read_bytes()[:3000])
    (folder / "b.png").write_text("<html>not found</html>")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_folder_with_bad_files_finishes_and_says_which(mixed: Path) -> None:
    out, err = run("classify", "--json", str(mixed))
    rows = [json.loads(line) for line in out.splitlines()]
    names = [str(Path(row["key"]).relative_to(mixed)) for row in rows]
    assert names == ["a2.jpg", "a10.jpg", "b.png", "deep/z.jpg"]
    assert [row["status"] for row in rows] == ["ok", "corrupt_image", "unsupported_format", "ok"]
    assert len(rows[0]["top"]) == 5
    assert set(rows[0]["top"][0]) == {"index", "label", "probability"}
    assert rows[1]["message"]
    assert "2 of 4 inputs read, 2 bad" in err
    run("classify", "--json", "--strict", str(mixed), status=3)
    _, shown = run("classify", str(mixed))
    assert "b.png: unsupported_format:" in shown


def test_one_unreadable_input_is_status_3() -> None:
    _, err = run("classify", "absent.jpg", status=3)
    assert "absent.jpg: not_found" in err


def test_lists_globs_and_archives_name_images_too(mixed: Path, tmp_path: Path) -> None:
    archive = tmp_path / "some.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(CAT, "inside/cat.jpg")
    listed = f"{CAT}\n{mixed / 'a2.jpg'}\n"
    out, _ = run("embed", "--json", "-", str(mixed / "a*.jpg"), str(archive), stdin=listed)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [Path(row["key"]).name for row in rows] == ["cat.jpg", "a2.jpg", "a2.jpg", "a10.jpg", "cat.jpg"]
    assert rows[4]["key"] == f"{archive}::inside/cat.jpg"
    good = [row["embedding"] for row in rows if row["status"] == "ok"]
    assert_allclose(good, [good[0]] * 4, atol=1e-5)


def test_csv(mixed: Path) -> None:
    out, _ = run("classify", "--csv", "-k", "2", str(mixed))
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == [
        "key",
        "status",
        "message",
        *(f"{n}{k}" for k in (1, 2) for n in ("index", "label", "probability")),
        *ASSESSED,
    ]
    assert [row["status"] for row in rows] == ["ok", "corrupt_image", "unsupported_format", "ok"]
    assert rows[1]["label1"] == ""
    out, _ = run("embed", "--csv", CAT)
    assert len(next(csv.reader(io.StringIO(out)))) == 3 + tessella.load().width


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".csv"])
def test_out_files_hold_every_row(mixed: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    run("embed", "--out", str(path), str(mixed))
    keys, status, vectors = read_rows(path)
    assert [Path(key).name for key in keys] == ["a2.jpg", "a10.jpg", "b.png", "z.jpg"]
    assert status == ["ok", "corrupt_image", "unsupported_format", "ok"]
    expected = tessella.load().embed([mixed / "a2.jpg", mixed / "deep" / "z.jpg"])
    assert_allclose(np.array([vectors[0], vectors[3]]), expected, atol=1e-5)
    assert not any(p.name.endswith(".tmp") for p in tmp_path.iterdir())


def read_rows(path: Path) -> tuple[list[str], list[str], list[list[float]]]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            assert str(file["fingerprint"]) == tessella.load().fingerprint
            assert np.isnan(file["embeddings"][1]).all()
            return file["keys"].tolist(), file["status"].tolist(), file["embeddings"].tolist()
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        assert json.loads(table.schema.metadata[b"tessella"])["fingerprint"] == tessella.load().fingerprint
        assert table["embedding"][1].as_py() is None
        return table["key"].to_pylist(), table["status"].to_pylist(), table["embedding"].to_pylist()
    rows = list(csv.reader(path.read_text().splitlines()))[1:]
    return [r[0] for r in rows], [r[1] for r in rows], [[float(x) for x in r[3:] if x] for r in rows]


def test_features(tmp_path: Path) -> None:
    out, _ = run("features", "-m", CIFAR10_MODEL, "--json", "--blocks", "0,-1", CAT, "absent.jpg")
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows[0]["shapes"] == [[256, 8, 8]] * 2
    assert (rows[1]["key"], rows[1]["status"]) == ("absent.jpg", "not_found")
    path = tmp_path / "maps.npz"
    run("features", "-m", CIFAR10_MODEL, "--out", str(path), CAT, "absent.jpg", CAT)
    with np.load(path, allow_pickle=False) as file:
        assert file["features0"].shape == (3, 256, 8, 8)
        assert file["keys"].tolist() == [CAT, "absent.jpg", CAT]
        assert file["status"].tolist() == ["ok", "not_found", "ok"]
        assert np.isnan(file["features0"]).any((1, 2, 3)).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["classify", CAT, "--model", "convmixer_768_33"], "convmixer_768_32"),
        (["classify", CAT, "--model", "mixer_b16_224.in22k"], "goog_in21k"),
        (["classify", CAT, "--model", "gmixer_12_224"], "no weights"),
        (["classify", CAT, "--device", "warp"], "device 'warp'"),
        (["classify", CAT, "--json", "--csv"], "choose one"),
        (["embed", CAT, "--out", "x.xlsx"], ".npz, .parquet, .csv"),
        (["embed", CAT, "--out", "nowhere/x.npz"], "no folder 'nowhere'"),
        (["features", CAT, "--blocks", "a"], "comma-separated integers"),
        (["features", CAT, "--blocks", "99"], "0 to 7"),
        (["classify"], "INPUT"),
        (["classify", CAT, "--colour"], "--colour"),
        (["clasify", CAT], "clasify"),
        (["info", "convmixer_768_33"], "convmixer_768_32"),
    ],
)
def test_wrong_usage_is_status_2_and_says_what_to_type(arguments: list[str], says: str, tmp_path: Path) -> None:
    out, err = run(*arguments, status=2, cwd=tmp_path)
    assert says in err
    assert out == ""


def test_bad_weights_are_status_4_and_the_hub_is_status_5(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"<html>404</html>")
    _, err = run("classify", CAT, "--checkpoint", str(tmp_path / "model.safetensors"), status=4)
    assert "web page" in err
    offline = dict(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    done = process("classify", CAT, "--model", "crossvit_9_240.in1k", **offline)
    assert done.returncode == 5
    assert "HF_HUB_OFFLINE" in done.stderr


def test_a_folder_of_ones_own_model(tmp_path: Path) -> None:
    model = tessella.create_model("mixer_s32_224", img_size=64, embed_dim=16, num_blocks=1, num_classes=2)
    fill_golden(model)
    tessella.save_pretrained(model, tmp_path, config_overrides=dict(label_names=["cup", "no cup"]))
    out, _ = run("classify", "--model", f"local-dir:{tmp_path}", "--json", CAT)
    assert {one["label"] for one in json.loads(out)["top"]} == {"cup", "no cup"}


def test_convert(tmp_path: Path) -> None:
    model = tessella.create_model("convit_tiny")
    fill_golden(model)
    torch.save(model.state_dict(), tmp_path / "convit_tiny.pth")
    out, _ = run("convert", str(tmp_path / "convit_tiny.pth"), "--out", str(tmp_path / "model"))
    assert "convit_tiny" in out
    again = tessella.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    assert torch.equal(again.get_parameter("head.weight"), model.get_parameter("head.weight"))


def test_info_prints_the_model_cards_figures() -> None:
    out, _ = run("info", "convmixer_768_32")
    for figure in ("21.1", "19.5", "26.0", "20.7", "80.16", "mit", "timm/convmixer_768_32.in1k"):
        assert figure in out, figure
    out, _ = run("info", "mixer_b16_224.goog_in21k_ft_in1k")
    assert "despite its tag" in out
    assert json.loads(run("info", "--json")[0])["name"] == default_model()
    assert json.loads(run("info", CIFAR10_MODEL, "--json")[0])["num_classes"] == 10


def test_list() -> None:
    out, _ = run("list", "--json", "convit_[bs]*", "convit_tiny*", "mixer_s32*")
    names = [json.loads(line)["name"] for line in out.splitlines()]
    assert names == ["convit_base.fb_in1k", "convit_small.fb_in1k", "convit_tiny.fb_in1k", "mixer_s32_224.untrained"]
    out, _ = run("list", "--json", "--pretrained", "mixer_s32*", "convmixer*cifar10")
    assert [json.loads(line)["name"] for line in out.splitlines()] == ["convmixer_256_8_ks3_p4.cifar10"]
    assert "3 of 49 models" in run("list", "gmixer*")[1]


def test_models_are_compared(tmp_path: Path) -> None:
    out, notes = run("list", "--compare", "convit_", "--sort", "accuracy")
    assert [line.split()[0] for line in out.splitlines()[2:5]] == [
        f"convit_{s}.fb_in1k" for s in ("base", "small", "tiny")
    ]
    assert "RTX 4090: NVIDIA RTX 4090" in notes
    files = {option: tmp_path / f"models{suffix}" for option, suffix in (("--csv", ".csv"), ("--html", ".html"))}
    run("list", *(part for option, path in files.items() for part in (option, str(path))), "--size", "408")
    assert len(files["--csv"].read_text().splitlines()) == 3
    assert "crossvit_18_dagger_408.in1k" in files["--html"].read_text()


def test_a_card_is_printed_or_written(tmp_path: Path) -> None:
    out, _ = run("card", CIFAR10_MODEL)
    assert out.startswith("---\n")
    run("card", CIFAR10_MODEL, "--out", str(tmp_path / "README.md"))
    assert (tmp_path / "README.md").read_text() == out


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = metadata.version  # of an editable install, it is that of the day of the installation
    monkeypatch.setattr(metadata, "version", lambda name: "0.0" if name == "tessella" else stored(name))
    rows = json.loads(run("doctor", "--json")[0])
    choices = {row["what"]: row["chosen"] for row in rows}
    assert choices["tessella"] == __version__
    assert choices["torch"] == torch.__version__
    assert choices["built-in model"] == "works"
    assert all(row["reason"] for row in rows)


def test_a_closed_pipe_is_no_error(mixed: Path) -> None:
    command = (
        f'"{sys.executable}" -m tessella classify "{mixed}" "{mixed}" 2>/dev/null | head -n 1; echo ${{PIPESTATUS[0]}}'
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0"


def test_a_resumed_run_says_that_its_inputs_were_listed_before(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", str(tmp_path / "run")
    photos.mkdir()
    shutil.copy(CAT, photos)
    run("run", str(photos), "--out", out)
    shutil.copy(CAT, photos / "added.jpg")
    table, messages = run("run", str(photos), "--out", out)
    assert table.split() == ["status", "rows", "─" * 13, "ok", "1"]
    assert "resuming: 1 of 1 shard finished; inputs added since the run was started are ignored" in messages


def test_run_keeps_every_row_and_goes_on(mixed: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    first, messages = run("run", str(mixed), "--out", out, "--json")
    summary = json.loads(first)
    assert summary["rows"] == summary["ok"] + sum(summary["errors"].values()) > summary["ok"] > 0
    assert "bad" in messages
    again, messages = run("run", str(mixed), "--out", out)
    assert "1 of 1 shard finished" in messages
    assert str(summary["ok"]) in again
    run("run", str(mixed), "--out", out, "--strict", status=3)
    _, messages = run("run", str(mixed), "--out", out, "--top", "2", status=2)
    assert "holds a run with other settings: top 5, now 2" in messages
    metrics = tmp_path / "run.prom"
    run("run", str(mixed), "--out", str(tmp_path / "other"), "--prometheus", str(metrics))
    lines = metrics.read_text().splitlines()
    assert f"tessella_run_rows_done {float(summary['rows'])}" in lines
    assert 'tessella_run_errors{code="corrupt_image"} 1.0' in lines
    absent = str(tmp_path / "absent" / "run.prom")
    _, messages = run("run", str(mixed), "--out", out, "--prometheus", absent, status=6)
    assert f"{absent!r} could not be written" in messages


def test_a_run_is_verified_and_repaired(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run("run", str(mixed), "--out", str(out))
    _, messages = run("verify-run", str(out))
    assert "4 rows in 1 shard, 1 of them finished and intact; no damage" in messages
    (out / "shards" / "shard-00000000.parquet").write_bytes(b"half")
    shown, messages = run("verify-run", str(out), status=6)
    assert "not the file that was written" in shown
    assert "--repair" in messages
    report = json.loads(run("verify-run", str(out), "--json", "--repair")[0])
    assert [(one["shard"], one["rows"]) for one in report["damage"]] == [(0, 4)]
    _, messages = run("verify-run", str(out))
    assert "unfinished shards: 1; rerun the same `tessella run` command" in messages
    run("run", str(mixed), "--out", str(out))
    assert "no damage" in run("verify-run", str(out))[1]
    assert "holds no run" in run("verify-run", str(mixed), status=3)[1]


def test_a_run_is_indexed_searched_and_rid_of_duplicates(mixed: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    shutil.copy(CAT, mixed / "copy of a2.jpg")
    run("run", str(mixed), "--out", out)
    assert "tessella index" in run("search", out, CAT, status=3)[1]
    shown, messages = run("index", out)
    assert shown.startswith("3 rows in ")
    assert "searches are exact" in messages
    assert json.loads(run("index", out, "--json")[0])["added"] == 0
    sheet = tmp_path / "sheet.html"
    shown, _ = run("search", out, CAT, "--top", "2", "--where", "width > 10", "--sheet", str(sheet), "--json")
    rows = [json.loads(line) for line in shown.splitlines()]
    assert [Path(row["key"]).name for row in rows] == ["a2.jpg", "copy of a2.jpg"]
    assert sheet.read_text().count("<figure>") == 3
    assert rows[0]["key"] in run("search", out, f"key:{rows[1]['key']}")[0]
    assert "columns are key, row" in run("search", out, CAT, "--where", "widht > 10", status=2)[1]
    assert "there is no file" in run("search", out, str(tmp_path / "gone.jpg"), status=3)[1]
    vectors = str(tmp_path / "v.npz")
    run("embed", CAT, "--transform", "fast", "--out", vectors)
    assert "fingerprint" in run("search", out, vectors, status=2)[1]
    shown, messages = run("dedup", out, "--json")
    assert [(json.loads(line)["kind"], json.loads(line)["key"]) for line in shown.splitlines()] == [
        ("kept", str(mixed / "a2.jpg")),
        ("same", str(mixed / "copy of a2.jpg")),
    ]
    assert "duplicates: 1 of 3 images; clusters: 1\n" in messages
    assert f"similarity threshold: 0.95 (measured for {default_model()})\n" in messages
    assert "same" in run("dedup", out, "--exact")[0]


def test_the_results_of_a_search_are_explained(mixed: Path, tmp_path: Path) -> None:
    out, why = str(tmp_path / "run"), tmp_path / "why.html"
    shutil.copy(EXAMPLES / "coffee.jpg", mixed / "coffee.jpg")
    run("run", str(mixed), "--out", out)
    run("index", out)
    shown, messages = run("search", out, CAT, "--negative", str(mixed / "coffee.jpg"), "--why", str(why), "--json")
    found = [json.loads(line)["key"] for line in shown.splitlines()]
    page = why.read_text()
    assert f"<h1>Why these images of {out} are similar</h1>" in page
    assert page.count("<section>") == len(found)
    assert page.count("<img") == 2 * len(found)  # with the query and with the negative one
    assert messages == ""
    (mixed / "coffee.jpg").unlink()
    picture = tmp_path / "why.png"
    _, messages = run("search", out, CAT, "--why", str(picture))
    assert f"{mixed / 'coffee.jpg'} is not explained: there is no file" in messages
    assert picture.read_bytes().startswith(b"\x89PNG")
    _, messages = run("search", out, CAT, "--where", "width > 99999", "--why", str(tmp_path / "none.png"))
    assert "none.png was not written: there are no results" in messages
    assert not (tmp_path / "none.png").exists()


def test_as_many_results_are_explained_as_anyone_looks_at(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, why = str(tmp_path / "run"), tmp_path / "why.html"
    run("run", str(mixed), "--out", out)
    run("index", out)
    monkeypatch.setattr("tessella.explain.neighbors.MAX_EXPLAINED", 1)
    _, messages = run("search", out, CAT, "--why", str(why))
    assert "only the first 1 of 2 results are explained" in messages
    assert why.read_text().count("<section>") == 1


def test_what_cannot_be_explained_is_refused_before_the_search(mixed: Path, tmp_path: Path) -> None:
    out, vector = str(tmp_path / "run"), tmp_path / "vector.npy"
    run("run", str(mixed), "--out", out)
    run("index", out)
    width = json.loads(run("info", default_model(), "--json")[0])["embedding_width"]
    np.save(vector, np.ones(width, np.float32))
    shown, messages = run("search", out, str(vector), "--why", str(tmp_path / "why.html"), status=2)
    assert shown == ""
    assert "no query is an image" in messages
    shown, messages = run("search", out, CAT, "--why", str(tmp_path / "why.txt"), status=2)
    assert shown == ""
    assert ".png or .html" in messages
    assert not list(tmp_path.glob("why.*"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], None),
        (["--ray"], ("local", None)),
        (["--ray", "n1:6379", "--actor-cores", "4"], ("n1:6379", 4)),
    ],
)
def test_run_on_ray_here_or_there(
    arguments: list[str], expected: Any, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clusters = []

    def start(*_: Any, cluster: Any, **__: Any) -> Any:
        clusters.append(cluster and (cluster.address, cluster.cores))
        assert not cluster or pickle.loads(pickle.dumps(cluster.load))().name
        raise UsageError("busy", "enough")

    monkeypatch.setattr("tessella.bulk.run", start)
    run("run", str(mixed), "--out", str(tmp_path / "run"), *arguments, status=2)
    assert clusters == [expected]
    _, messages = run("run", "--ray", str(mixed), "--out", str(tmp_path / "run"), str(mixed), status=2)
    assert "is not HOST:PORT" in messages


def test_an_interrupt_is_status_130_without_a_traceback() -> None:
    command = [sys.executable, "-m", "tessella", "classify", "--json", "-v", "-"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a test run that was itself started in the background hands down ignored interrupts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        assert "model:" in process.stderr.readline()  # the model is loaded; it now waits for names
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err


def test_progress_is_shown_on_a_terminal_and_only_there() -> None:
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "tessella", "classify", "--json", "--batch-size", "1", *[CAT] * 800]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, text=True, env=environment) as running:
        os.close(terminal)
        with ThreadPoolExecutor() as pool:  # a terminal that nobody reads would stop the program
            shown = pool.submit(read_all, controller)
            assert running.stdout is not None
            rows = running.stdout.read().splitlines()
    os.close(controller)
    assert len(rows) == 800
    assert b"/800" in shown.result()
    assert b"images/s" in shown.result()
    assert "images/s" not in run("classify", CAT)[1]


def read_all(descriptor: int) -> bytes:
    """What was written to the other end of a terminal until it was closed."""
    parts = []
    with suppress(OSError):  # how Linux tells that the other end is closed
        while part := os.read(descriptor, 65536):
            parts.append(part)
    return b"".join(parts)
