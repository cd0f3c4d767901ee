"""`tessella train`, `evaluate` and `probe` as a user types them, on a few hundred images."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tessella
from tessella.cli.progress import TrainingProgress
from tessella.cli.training import train
from tessella.training.events import EmbeddingEvent, EpochEvent, ProbeEvent, StepEvent, TrainingRemark

from ..test_builtin import CIFAR10_MODEL
from ..training.small_runs import FAMILIES, make_images
from ..training.small_teachers import save_teacher
from .test_cli import run

CLASSES = ("cat", "dog", "horse")


@pytest.fixture(scope="module")
def tuned(animals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "animals"
    _, err = run(
        "train", str(animals), "-m", CIFAR10_MODEL, "-o", str(out), "--epochs", "4", "--workers", "0", "--tensorboard"
    )
    first, second, *_ = err.splitlines()
    assert first.startswith(f"{CIFAR10_MODEL}: pretrained weights, preset finetune: settings of this")
    assert re.match(r"linear probe on frozen embeddings: top-1 \d\d\.\d\d % on \d+ held-out images, \d+ s", second)
    assert "epoch 3: loss" in err
    assert "the linear probe" in err.splitlines()[-3]
    assert err.splitlines()[-2].startswith("not calibrated: there are 32 validation images, and at least 40 are needed")
    assert f"tessella classify -m local-dir:{out}" in err
    return out


def test_fine_tuning_on_a_few_hundred_images(animals: Path, tuned: Path) -> None:
    model = tessella.load(f"local-dir:{tuned}")
    assert model.labels == CLASSES
    rows = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    assert max(row["val_top1"] for row in rows) > 0.7  # chance is a third
    report = (tuned / "report" / "report.md").read_text()
    assert f"tessella train {animals}" in report
    for name in ("confusion", "calibration", "coverage", "curves"):
        assert f"({name}.png)" in report
        assert (tuned / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert list((tuned / "tensorboard").glob("events*"))
    assert json.loads((tuned / "train.json").read_text())["config"]["init_from"] == "pretrained"


def test_evaluate_prints_and_writes_its_results(animals: Path, tuned: Path, tmp_path: Path) -> None:
    names = ("-m", f"local-dir:{tuned}", "-m", "convmixer_256_8_ks3_p4.cifar10")
    out, err = run("evaluate", str(animals), *names, "--json", "--out", str(tmp_path / "results"))
    own, ten = (json.loads(line) for line in out.splitlines())
    held_out = json.loads((tuned / "metrics.jsonl").read_text().splitlines()[-1])["val_images"]
    assert 0 < held_out < 60
    assert (own["images"], own["measured"], own["unread"]) == (held_out, held_out, 0)
    assert ten["images"] == held_out
    remark = f"the {held_out} images of {animals} that {tuned} held out"
    assert err.startswith(remark)
    assert own["conditions"]["data"] == remark
    assert own["top1"] > 0.7
    assert "3 of the model's 10" in ten["classes"]
    assert (tmp_path / "results" / "evaluation.csv").read_text().count("\n") == 3
    assert "evaluation.md" in err
    table, _ = run("evaluate", str(animals), "-m", f"local-dir:{tuned}")
    assert f"{100 * own['top1']:.2f}" in table
    _, err = run("evaluate", str(animals), "-m", f"local-dir:{tuned}", "--split", "all")
    assert f"warning: {tuned} was trained on {300 - held_out} of the 300 images" in err
    _, err = run("evaluate", str(animals), "-m", "convmixer_768_33", status=2)
    assert "unknown model" in err


def test_probe_prints_its_results_and_attaches_a_classifier(animals: Path, tmp_path: Path) -> None:
    attached = tmp_path / "animals"
    out, err = run("probe", str(animals), "--shots", "1,5", "--attach-to", str(attached), "--accuracy", "0.9")
    assert "nearest neighbors" in out
    assert "linear, 5 per class" in out
    assert re.search(r"trained on \d+ images: .*\nevaluated on \d+ images: ", err)
    result = json.loads(run("probe", str(animals), "--shots", "1,5", "--json")[0])
    assert f"{100 * result['linear']['top1']:.2f} %" in out
    assert tessella.load(f"local-dir:{attached}").labels == CLASSES
    _, err = run("evaluate", str(animals), "-m", f"local-dir:{attached}")
    assert re.search(r"the \d\d images of .* held out \(--split all evaluates all 300\)", err)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["train", "{}"], 2),  # no --out
        (["train", "{}", "-o", "{}/run", "--preset", "resnet"], 2),
        (["train", "{}", "-o", "{}/run", "-m", "mixer_s32_224"], 3),  # an empty folder
        (["evaluate", "{}/absent"], 3),
        (["probe", "{}"], 3),
        (["train", "{}", "-o", "{}/run", "--seed", "-1"], 2),
        (["train", "{}", "-o", "{}/run", "--img-size", "100000"], 2),
        (["train", "{}", "-o", "{}/run", "--lr", "nan"], 2),
        (["train", "{}", "-o", "{}/run", "--config", "{}/absent.json"], 3),
        (["probe", "{}", "--seed", "-1"], 2),
        (["evaluate", "{}", "--batch-size", "99999999999999999999999"], 2),
        (["evaluate", "{}", "-m", "local-dir:{}/absent"], 4),
        (["train", "{}", "-o", "{}/run", "--teacher", "{}/absent.tflite"], 4),
        (["train", "{}", "-o", "{}/run", "--teacher", "convmixer_768_33"], 2),
        (["train", "{}", "-o", "{}/run", "--unlabelled", "{}/absent"], 3),
        (["train", "{}", "-o", "{}/run", "--unlabelled", "{}"], 2),  # without a teacher
        (["train", "{}", "-o", "{}/run", "--distill-weight", "2"], 2),
    ],
)
def test_invalid_arguments_are_refused(tmp_path: Path, arguments: list[str], status: int) -> None:
    _, err = run(*(argument.replace("{}", str(tmp_path)) for argument in arguments), status=status)
    assert "Error" in err or "error: " in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [["train", "-o", "run"], ["probe"], ["evaluate"], ["evaluate", "-m", "mixer_s9"]])
def test_paths_and_names_are_checked_before_pytorch_is_imported(command: list[str]) -> None:
    code = (
        "import sys; from tessella import cli\n"
        f"sys.argv = ['tessella', *{command!r}, '/absent']\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert stop.code in (2, 3)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "error: " in done.stderr


def test_distillation_from_a_file_without_labels(tmp_path: Path) -> None:
    data, more, out = make_images(tmp_path / "data"), make_images(tmp_path / "more", count=20, seed=1), tmp_path / "run"
    teacher = save_teacher(tmp_path / "teacher.xml", side=20).path
    config = tmp_path / "config.json"
    name = "convmixer_768_32"
    settings = dict(
        model=name, model_args=FAMILIES[name], epochs=1, batch_size=16, img_size=16, distill_center_images=8
    )
    config.write_text(json.dumps(settings))
    command = ["train", str(data), "--teacher", str(teacher), "--distill-target", "both", "--distill-weight", "1"]
    command += ["--unlabelled", str(more / "train"), "--unlabeled", str(more / "val"), "--config", str(config)]
    _, err = run(*command, "-o", str(out), "--workers", "0")
    lines = err.splitlines()
    assert f"teacher: {teacher}, input uint8 NHWC 20 x 20 px, 3 classes, embedding of 6 numbers (features)" in lines
    assert "48 labeled and 30 unlabeled images; an epoch is 64 images, 38 % of them unlabeled" in lines
    assert re.search(r"\nepoch 0: loss .*, agreement with the teacher \d+\.\d\d %, \d+ s\n", err)
    assert lines[-1] == f"{out} is ready: tessella classify -m local-dir:{out} IMAGE; see {out}/README.md"
    assert run("classify", "-m", f"local-dir:{out}", str(data / "val" / "dark" / "0.png"))[0]
    _, err = run(*command, "--unlabelled", str(data / "val"), "-o", str(out), status=2)
    assert "the unlabeled images changed" in err


@pytest.mark.parametrize("written", ["local-dir:{}/exported", "{}/exported", "local-dir:~/exported"])
def test_an_exported_folder_is_a_teacher_however_it_is_written(
    tmp_path: Path, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run("export", CIFAR10_MODEL, str(tmp_path / "exported"))
    command = ["train", str(make_images(tmp_path / "data")), "-m", CIFAR10_MODEL, "--epochs", "1", "--img-size", "16"]
    command += ["--batch-size", "16", "--teacher", written.format(tmp_path), "--distill-target", "embedding"]
    _, err = run(*command, "--distill-weight", "1", "-o", str(tmp_path / "run"), "--workers", "0")
    assert f"teacher: {written.format(tmp_path)}, input uint8 NHWC 32 x 32 px, embedding of 256 numbers" in err


def test_a_stopped_run_tells_how_to_resume(tmp_path: Path) -> None:
    data = make_images(tmp_path / "data")
    config = tmp_path / "config.json"
    name = "mixer_s32_224"
    config.write_text(json.dumps(dict(model=name, model_args=FAMILIES[name], epochs=100_000, batch_size=16)))
    run_folder = str(tmp_path / "run")
    command = [sys.executable, "-m", "tessella", "train", str(data), "--config", str(config), "-o", run_folder]
    one_thread = os.environ | dict(OMP_NUM_THREADS="1")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=one_thread) as process:
        assert process.stderr is not None
        while "epoch 1:" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped by SIGTERM" in err
    assert "run the same command again to resume" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("former", "name", "text", "value"),
    [("--accumulate", "grad_accum_steps", "4", 4), ("--ema", "ema_decay", "0.9", 0.9)],
)
def test_former_names_of_options_are_accepted(former: str, name: str, text: str, value: float) -> None:
    context = train.make_context("train", ["photos", "--out", "run", former, text])
    assert context.params[name] == value
    assert f"{former} " not in context.get_help()


def test_progress_is_a_line_per_epoch_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    counts: dict[str, Any] = dict(val_top1=0.75, val_loss=0.5, val_images=8, val_errors=0, seconds=2.0)
    with TrainingProgress() as progress:
        progress(TrainingRemark(text="a [bold] remark\x1b[2J"))
        progress(ProbeEvent(**counts))
        progress(StepEvent(step=1, steps=2, epoch=0, loss=0.5, lr=0.1, images_per_second=10.0))
        progress(EpochEvent(epoch=0, step=2, lr=0.1, loss=0.5, images=14, skipped=2, bad_steps=0, **counts))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        r"a [bold] remark\x1b[2J",
        "linear probe on frozen embeddings: top-1 75.00 % on 8 held-out images, 2 s",
        "epoch 0: loss 0.5000, validation loss 0.5000, top-1 75.00 %, 2 s, 2 images skipped",
    ]


def test_the_linear_probe_shows_a_line_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 4.0, 11.0, 12.0, 22.0])  # the start, then one per event
    monkeypatch.setattr("tessella.cli.progress.time.monotonic", lambda: next(clock))
    progress = TrainingProgress()
    for done in (500, 1000, 1500, 2000):
        progress(EmbeddingEvent(done=done, images=2000))
    assert capsys.readouterr().err.splitlines() == [
        "linear probe: 1,000 of 2,000 images embedded",
        "linear probe: 2,000 of 2,000 images embedded, fitting the classifier",
    ]


def test_only_the_first_process_shows_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with TrainingProgress() as progress:
        progress(TrainingRemark(text="a remark"))
    assert capsys.readouterr().err == ""
