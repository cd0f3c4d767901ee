"""Without PyTorch, everything works that runs models on a CPU; what needs it says so before any work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessella.cli.program import COMMANDS
from tessella.weights.catalogue import default_model

from .base_install import run_code, tessella
from .test_builtin import CIFAR10_MODEL

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
CAT = EXAMPLES / "cat.jpg"


def output(*arguments: str | Path, folder: Path | None = None) -> str:
    """The output of a command that must succeed."""
    done = tessella(*arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def output_with_torch(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "tessella", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two classes that the built-in model knows, of eight images each."""
    folder = tmp_path_factory.mktemp("labeled")
    for name, label in (("cat", "cat"), ("rocket", "airplane")):
        (folder / label).mkdir()
        with Image.open(EXAMPLES / f"{name}.jpg") as image:
            for i in range(8):
                image.crop((i, i, image.width - i, image.height - i)).save(folder / label / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    summary = json.loads(output("run", EXAMPLES, ROOT / "clothing", "--out", out, "--shard-rows", "32", "--json"))
    assert summary["rows"] == summary["ok"] == 76
    return out


def test_the_processes_have_no_pytorch() -> None:
    code = (
        "import importlib.util, importlib.metadata, numpy\n"
        "print(importlib.util.find_spec('torch'), importlib.metadata.version('numpy'))\n"
        "try: importlib.metadata.version('torch')\n"
        "except importlib.metadata.PackageNotFoundError: print('unknown')\n"
        "import torch"
    )
    done = run_code(code)
    assert done.stdout.split() == ["None", np.__version__, "unknown"]
    assert "No module named 'torch'" in done.stderr


# --- what works -------------------------------------------------------------------------------------------------------


def test_the_help_of_every_command() -> None:
    code = (
        "from click.testing import CliRunner; from tessella.cli.program import COMMANDS, cli\n"
        "for name in COMMANDS:\n"
        "    done = CliRunner().invoke(cli, [name, '--help']); print(name, done.exit_code, repr(done.exception))"
    )
    assert run_code(code).stdout.splitlines() == [f"{name} 0 None" for name in COMMANDS]


@pytest.mark.parametrize(
    "arguments",
    [("classify", CAT, "--json"), ("embed", CAT, "--json"), ("classify", EXAMPLES, "--csv", "--transform", "fast")],
    ids=["classify", "embed", "fast"],
)
def test_results_are_those_of_an_installation_with_pytorch(arguments: tuple[str | Path, ...]) -> None:
    assert output(*arguments) == output_with_torch(*arguments)


def test_files_of_embeddings(tmp_path: Path) -> None:
    output("embed", EXAMPLES, "-m", CIFAR10_MODEL, "--out", tmp_path / "vectors.npz")
    with np.load(tmp_path / "vectors.npz") as stored:
        assert stored["embeddings"].shape == (4, 256)


def test_models_are_listed_and_described() -> None:
    assert "mixer_b16_224.goog_in21k_ft_in1k" in output("list", "mixer")
    assert "86.5" in output("info", "convit_base.fb_in1k")
    assert json.loads(output("info", "--json"))["name"] == default_model()


def test_doctor_tests_the_built_in_model() -> None:
    rows = {row["what"]: row for row in json.loads(output("doctor", "--json"))}
    assert rows["built-in model"]["chosen"] == "works"
    assert rows["torch"]["chosen"] == "not installed"
    assert rows["torch"]["reason"].startswith("optional")
    assert rows["engine"]["chosen"] == "openvino"
    assert rows["device"]["chosen"] == "cpu"


def test_a_run_has_the_bytes_of_one_with_pytorch(run_folder: Path, tmp_path: Path) -> None:
    output_with_torch("run", EXAMPLES, ROOT / "clothing", "--out", tmp_path / "run", "--shard-rows", "32", "--json")
    shards = sorted((run_folder / "shards").glob("*.parquet"))
    assert len(shards) == 3
    for shard in shards:
        assert shard.read_bytes() == (tmp_path / "run" / "shards" / shard.name).read_bytes()


def test_a_run_is_verified_repaired_and_resumed(run_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_folder, tmp_path / "run")
    assert tessella("verify-run", copy).returncode == 0
    shard = sorted((copy / "shards").glob("*.parquet"))[1]
    before = shard.read_bytes()
    shard.write_bytes(before[:-7])
    assert tessella("verify-run", copy).returncode == 6
    output("verify-run", copy, "--repair")
    output("run", EXAMPLES, ROOT / "clothing", "--out", copy, "--shard-rows", "32")
    assert shard.read_bytes() == before
    assert tessella("verify-run", copy).returncode == 0


def test_models_are_verified_and_receipts_replayed(tmp_path: Path) -> None:
    done = tessella("verify", CIFAR10_MODEL, "--receipt", tmp_path / "receipt.json")
    assert done.returncode == 0, done.stderr
    assert "6 checks passed, none failed" in done.stderr
    assert "PyTorch's in float64" in done.stdout  # the golden answers do not need it
    assert "none failed" in tessella("replay", tmp_path / "receipt.json").stderr


def test_a_run_is_searched(run_folder: Path, tmp_path: Path) -> None:
    assert "76 rows" in output("index", run_folder)
    query = shutil.copy(CAT, tmp_path / "query.jpg")
    found = [json.loads(line) for line in output("search", run_folder, query, "--top", "3", "--json").splitlines()]
    assert found[0]["key"].endswith("cat.jpg")
    assert found[0]["score"] > 0.999
    assert "0 of 76 images" in tessella("dedup", run_folder).stderr


def test_models_are_evaluated(labeled: Path) -> None:
    (row,) = map(json.loads, output("evaluate", labeled, "--json").splitlines())
    assert row["status"] == "ok"
    assert row["images"] == 16


def test_embeddings_are_probed(labeled: Path, tmp_path: Path) -> None:
    result = json.loads(output("probe", labeled, "--val-fraction", "0.25", "--json"))
    assert result["linear"]["top1"] == result["knn"]["top1"] == 1.0


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_precisions_and_exported_folders(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))
    model = ("-m", CIFAR10_MODEL)
    expected = json.loads(output("classify", CAT, *model, "--json", "--precision", precision))["top"]
    assert expected[0]["label"] == "cat"
    assert f" in {precision} " in output("export", CIFAR10_MODEL, tmp_path / "exported", "--precision", precision)
    found = json.loads(output("classify", CAT, "--json", "-m", f"local-dir:{tmp_path / 'exported'}"))["top"]
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    assert found[0]["probability"] == pytest.approx(expected[0]["probability"], abs=1e-4)


def test_openvino_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))  # what is tuned here decides no other test
    rows = [json.loads(line) for line in output("bench", "--rounds", "1", "--batch-size", "1", "--json").splitlines()]
    assert {row["candidate"].partition(",")[0]: row["status"] for row in rows} == {
        "eager": "missing_dependency",
        "rewritten": "missing_dependency",
        "openvino": "ok",
        "onnxruntime": "missing_dependency",
    }
    winners = json.loads(output("tune", "--precision", "float32", "--seconds", "2", "--json"))["winners"]
    assert {winner["engine"] for winner in winners.values()} == {"openvino"}


def test_the_python_interface() -> None:
    code = (
        "import tessella, numpy as np, sys\n"
        "predictor = tessella.load()\n"
        "image = np.zeros((40, 50, 3), np.uint8)\n"
        "assert predictor.embed([image]).shape == (1, predictor.width)\n"
        "print(len(predictor.classify(image, top=3)), predictor.plan.engine)\n"
        "print('torch' in sys.modules)"
    )
    done = run_code(code)
    assert done.stdout.split() == ["3", "openvino", "False"], done.stderr


# --- what needs PyTorch -----------------------------------------------------------------------------------------------

NEED: dict[str, tuple[str | Path, ...]] = {
    "train": ("train", "LABELED", "--out", "OUT"),
    "convert": ("convert", CAT, "--out", "OUT"),
    "features": ("features", CAT),
    "attach": ("probe", "LABELED", "--val-fraction", "0.25", "--attach-to", "OUT"),
    "eager": ("classify", CAT, "--engine", "eager"),
    "rewritten": ("run", EXAMPLES, "--out", "OUT", "--engine", "rewritten"),
    "compile": ("embed", CAT, "--engine", "compile"),
    "onnxruntime": ("classify", CAT, "--engine", "onnxruntime"),
    "cuda": ("classify", CAT, "--device", "cuda"),
}


@pytest.mark.parametrize("name", NEED)
def test_commands_that_need_pytorch_say_so_before_any_work(name: str, labeled: Path, tmp_path: Path) -> None:
    places: dict[str | Path, Path] = {"LABELED": labeled, "OUT": tmp_path / "out"}
    done = tessella(*(places.get(one, one) for one in NEED[name]))
    assert done.returncode == 2
    assert "needs" in done.stderr
    assert "torch" in done.stderr
    assert "pip install " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")  # noqa: PTH208
    assert done.stdout == ""


def test_every_public_name_is_there_or_says_what_it_needs() -> None:
    packages = ("data", "evaluation", "models", "performance", "search", "training", "utils", "bulk")
    code = (
        "import tessella\n"
        f"for module in (tessella, *(getattr(tessella, name) for name in {packages})):\n"
        "    for name in dir(module):\n"
        "        try: getattr(module, name)\n"
        "        except tessella.UsageError as error: print(f'{module.__name__}.{name}', error.code, error.hint)"
    )
    done = run_code(code)
    assert done.stderr == ""
    missing = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert set(missing.values()) == {"missing_dependency pip install torch"}
    assert {"tessella.create_model", "tessella.models.create_model", "tessella.training.train"} <= set(missing)
    assert not {"tessella.load", "tessella.Predictor", "tessella.bulk.run", "tessella.evaluation.probe"} & set(missing)


@pytest.mark.parametrize(
    "call",
    [
        "tessella.create_model('mixer_b16_224')",
        "tessella.training.train",
        "tessella.load(engine='rewritten')",
        "tessella.load(device='cuda')",
        "tessella.load('mixer_ti_p4_32.cifar10', img_size=64)",
        "tessella.load(num_classes=3)",
        "tessella.load(global_pool='')",
        "tessella.load(global_pool='', precision='fast')",
        "tessella.load('mixer_b16_224', global_pool='')",  # before the weights are downloaded
        "tessella.load('mixer_s32_224', pretrained=False)",  # PyTorch draws the weights
        "tessella.load().features([np.zeros((40, 50, 3), np.uint8)])",
        "tessella.data.create_transform(32)",
        "tessella.data.normalise(np.zeros((1, 32, 32, 3), np.uint8), tessella.data.InputSpec())",
    ],
)
def test_calls_that_need_pytorch_say_so(call: str) -> None:
    code = (
        "import tessella, numpy as np\n"
        f"try: {call}\n"
        "except tessella.UsageError as error: print(error.code, error.message, error.hint)"
    )
    done = run_code(code)
    assert done.stdout.startswith("missing_dependency "), done.stdout + done.stderr
    assert "torch" in done.stdout
    assert "pip install torch" in done.stdout
