"""The values that cases are made of: good ones by command and function, and bad ones by sort.

Everything is relative to the folder that `world` builds. Values of calls are Python expressions, so that a failing call
can be printed and pasted.
"""

from __future__ import annotations

import enum
import functools
import os
from typing import Any

from .world import LONG_NAME, ODD_NAMES


class Kind(enum.Enum):
    """What sort of text an option takes, by its name."""

    INPUT = "input"
    OUTPUT = "output"
    FOLDER = "folder"
    MODEL = "model"
    WORD = "word"
    TEXT = "text"


_NAMES = {
    Kind.INPUT: "inputs queries images data val config checkpoint real_labels source image paths list table",
    Kind.OUTPUT: "out sheet bad_inputs prometheus plot attach_to file output csv_file html",
    Kind.FOLDER: "folder run",
    Kind.MODEL: "model models name teacher arch patterns target",
    Kind.WORD: "device precision engine engines mode preset dataset batch shots blocks dtype",
}


def kind_of(name: str) -> Kind:
    return next((kind for kind, names in _NAMES.items() if name in names.split()), Kind.TEXT)


ODD_TEXTS = [
    "", " ", "-", "--", "-1", "0", "nonsense", "'", '"', "%s", "{}", "{0.__class__}", "[bold]", "\n", "a\nb", "\t",
    "\x1b]0;x\x07", "\u202e", "ß", "\U0001f600", "null", "nan", "a" * 300, "a" * 20_000, "[", "***", "?" * 50,
    "(" * 500, "a,b,,c", ",", "1,2,3", os.fsdecode(b"\xff\xfe"), "../x", "~", "~nouser/x", "$HOME", "@", "@list.txt",
    ":", "::", "=", "a=b", "\\", "\\x00", "#",
]  # fmt: skip
NUMBERS = [
    "1", "2", "0", "-1", "3.7", "1e3", "1e400", "nan", "inf", "-inf", "0.5", "1.0", "1e-320", "2147483648",
    "4294967296", "9223372036854775808", "1" * 24, "9" * 5000, "0x10", "1_000", "", " 1 ", "one", "٣", "+2", "--",
    "1,2",
]  # fmt: skip
_MISSING = [
    "nowhere", "nowhere/", "nowhere/x.png", "x" * 300, "a/" * 3000 + "b", "photos/0.jpg/x", "self", "fifo", "null",
    "zero",
]  # fmt: skip
_INPUTS = [
    "photos", "photos/0.jpg", "photos/*.png", "photos/**", "odd", "odd/*", "odd/self.png", "odd/fifo.png",
    "odd/socket.png", "odd/dangling.png", "odd/huge.png", "odd/cut.png", "odd/no bytes.png", "odd/zeros.jpg",
    "odd/loop/loop/cut.png", f"odd/{LONG_NAME}", *(f"odd/{name}" for name in ODD_NAMES), "odd/nothing*.png", "[", "[!",
    "empty", ".", "", "link", "full", "photos.tar", "cut.tar", "text.tar", "header.tar", "empty.tar", "rows.parquet",
    "cut.parquet", "flipped.parquet", "magic.parquet", "encrypted.parquet", "types.parquet", "norows.parquet",
    "@list.txt", "@utf16.txt", "@latin1.txt", "@nul.txt", "@recursive.txt", "@random.bin", "@fifo", "@zero",
    "@nowhere", "@photos", "-", "nope://x/y.png", "file:///nowhere.png", "memory://x", "http://", "s3://",
    "file://" + "x" * 300, "data", "labels.csv", "bad.csv", "real.json", "run", "tiny", "run/shards/*.parquet",
    "vector.npy", "narrow.npy", "nan.npy", "text.npy", "zero-d.npy", "object.npy", "header.npy", "absurd.npy",
    "cut.npz", "arrays.npz", "random.bin", "deep.json", "deepobject.json", "nan.json", "big.json", "digits.json",
    "array.json", "surrogate.json", "latin1.json", "types.json", "small.json", "cut.safetensors", "header.safetensors",
    "weights.pth", "weights/model.safetensors", "tiny/model.safetensors", *_MISSING,
]  # fmt: skip
_OUTPUTS = [
    "made", "made.csv", "made.npz", "made.parquet", "made.json", "made.html", "made.png", "made.svg", "made.prom",
    "made.xyz", "made.CSV", "made/a/b", "made/a.csv", "photos", "photos/0.jpg", "photos/x.csv", "photos/0.jpg/x.csv",
    "run", "run/x.csv", "trained", "data", "empty", ".", "", "link", "fifo", "full", "null", "zero", "self",
    "odd/fifo.png", "odd/self.png", "odd/dangling.png", "/proc/nope", "/proc/nope/x.csv", "/dev/full/x.csv",
    "x" * 300 + ".csv", "nowhere/x.csv", "a\nb.csv", os.fsdecode(b"lat\xe9.csv"), "-", "random.bin",
]  # fmt: skip
_FOLDERS = [
    "run", "unindexed", "run-cut", "run-flipped", "run-ledger", "run-facts", "run-types", "run-manifest", "run-seal",
    "run-index", "run/", "run/index", "trained", "trained-facts", "trained-weights", "trained-checkpoints", "tiny",
    "exported", "photos", "empty", "", ".", "link", "odd/loop", *_MISSING,
]  # fmt: skip
_MODELS = [
    "convmixer_256_8_ks3_p4.cifar10", "convmixer_256_8_ks3_p4", "convmixer_256_8_ks3_p4.nope", "resnet50",
    "mixer_s32_224", "convit*", "local-dir:tiny", "local-dir:weights", "local-dir:exported", "local-dir:badexport",
    "local-dir:nohash", "local-dir:badconfig", "local-dir:deepconfig", "local-dir:trained",
    "local-dir:trained-weights", "local-dir:", "local-dir:nowhere", "local-dir:fifo", "local-dir:~nouser",
    "local-dir:photos", "local-dir:\n", "hf-hub:", "hf-hub:a/b", "hf-hub:../..", "hf-hub:a/b@", "hf-hub:a/b@\n",
    "timm/mixer_s32_224", "nope:x", "tiny", "default", ".", "..", ".cifar10", *_MISSING[:4],
]  # fmt: skip
_WORDS = [
    "auto", "cpu", "cuda", "cuda:9", "cuda:x", "mps", "meta", "xla", "cpu:0", "float32", "bfloat16", "int8", "float16",
    "eager", "rewritten", "openvino", "onnxruntime", "compile", "auto,eager", "latency", "throughput", "finetune",
    "small-data", "convit", "none", "imagenet", "1", "1,2", "1,-1", "99", "9" * 30, "1.5", "0",
]  # fmt: skip
TEXTS: dict[Kind, list[str]] = {
    Kind.INPUT: _INPUTS,
    Kind.OUTPUT: _OUTPUTS,
    Kind.FOLDER: _FOLDERS,
    Kind.MODEL: _MODELS,
    Kind.WORD: [*_WORDS, *ODD_TEXTS],
    Kind.TEXT: [
        *ODD_TEXTS,
        "label = 'x'",
        "width > 10",
        "1=1) OR (1=1",
        "row IN (",
        "nocolumn = 1",
        "label LIKE '%'; DROP TABLE x",
    ],
}

_IMAGES: list[list[str]] = [
    ["photos/0.jpg"],
    ["photos"],
    ["photos.tar"],
    ["rows.parquet"],
    ["@list.txt"],
    ["photos/0.png", "odd"],
]
_SMALL = [["local-dir:tiny"], ["convmixer_256_8_ks3_p4.cifar10"]]
_READING: dict[str, list[list[str]]] = dict(inputs=_IMAGES, model=_SMALL, engine=[["eager"]])
# What works, by command and parameter; long work is kept short here.
GOOD: dict[str, dict[str, list[list[str]]]] = {
    "classify": _READING,
    "embed": _READING,
    "features": dict(inputs=_IMAGES, model=_SMALL, engine=[["eager"]]),
    "explain": dict(
        inputs=_IMAGES, model=_SMALL, like=[["photos/0.jpg"]], weights=_SMALL, classes=[["0"]], versus=[["1"]],
        method=[["exact"], ["grad-cam"]], out=[["made"], ["made.html"]],
    ),
    "run": dict(_READING, out=[["made"], ["made/run"]], processes=[["1"], ["2"]], shard_rows=[["4"]]),
    "verify": dict(target=[["run"], ["run-cut"], ["local-dir:tiny"], ["weights.pth"]], receipt=[["made.json"]]),
    "replay": dict(receipt=[["labels.csv"], ["small.json"]], target=[["run"]]),
    "verify-run": dict(folder=[["run"], ["run-cut"]]),
    "index": dict(folder=[["run"], ["unindexed"]]),
    "search": dict(folder=[["run"]], queries=[["photos/0.jpg"], ["photos/0.png", "photos/1.png"]]),
    "dedup": dict(folder=[["run"]]),
    "list": dict(patterns=[["conv*"], []], csv_file=[["models.csv"]], html=[["models.html"]]),
    "card": dict(target=[["convmixer_256_8_ks3_p4"], ["local-dir:tiny"]], out=[["card.md"]]),
    "info": dict(name=[["convmixer_256_8_ks3_p4"], ["local-dir:tiny"]]),
    "convert": dict(source=[["weights.pth"]], arch=[["mixer_b16_224"]], out=[["made"]]),
    "tune": dict(name=[["local-dir:tiny"]], engines=[["rewritten"]], precision=[["float32"]], seconds=[["1"]]),
    "export": dict(name=[["local-dir:tiny"]], folder=[["made"]]),
    "doctor": {},
    "train": dict(
        data=[["data"], ["rows.parquet"], ["labels.csv"]], out=[["made"], ["trained"]], config=[["small.json"]],
        epochs=[["1"]], workers=[["0"]], device=[["cpu"]],
    ),
    "inspect": dict(data=[["data"], ["labels.csv"], ["photos"]], model=_SMALL, out=[["made"]]),
    "probe": dict(data=[["data"], ["labels.csv"]], model=[["local-dir:tiny"]], shots=[["1"]]),
    "evaluate": dict(data=[["data"], ["labels.csv"]], models=[["local-dir:tiny"]], engine=[["eager"]]),
    "bench": dict(models=[["convmixer_256_8_ks3_p4"]], batch=[["1"]], engines=[["eager"]], rounds=[["1"]]),
}  # fmt: skip

ENVIRONMENT: dict[str, list[str | None]] = {
    "HOME": [None, "", "/nonexistent", "{here}/random.bin", "/proc"],
    "TESSELLA_CACHE": [
        None,
        "",
        "{here}/random.bin",
        "/proc/nope",
        "{here}/null",
        "~nouser",
        "relative",
        "{here}/a\nb",
        "{here}/fifo",
    ],
    "HF_HOME": ["", "{here}/random.bin", "/proc/nope", "relative"],
    "HF_HUB_CACHE": ["{here}/random.bin", "/proc/nope"],
    "TMPDIR": ["{here}/nowhere", "{here}/random.bin", "", "/proc"],
    "LC_ALL": ["C", "POSIX", "xx_YY.UTF-8", ""],
    "LANG": ["C", "nonsense"],
    "PYTHONIOENCODING": ["ascii", "latin-1", "utf-16", "ascii:strict"],
    "PYTHONUTF8": ["0", "1"],
    "COLUMNS": ["1", "0", "-5", "x", "100000"],
    "LINES": ["0", "x"],
    "TERM": ["dumb", "", "nonsense"],
    "NO_COLOR": ["1"],
    "FORCE_COLOR": ["1"],
    "MPLBACKEND": ["nonsense"],
    "MPLCONFIGDIR": ["{here}/random.bin", "/proc/nope"],
    "CUDA_VISIBLE_DEVICES": ["", "x", "99"],
    "OMP_NUM_THREADS": ["1", "0", "x"],
    "RANK": ["x"],
    "WORLD_SIZE": ["x", "0", "1"],
    "LOCAL_RANK": ["x"],
    "TZ": ["nonsense"],
    "PATH": [None],
}
STDIN = {
    "nothing": "</dev/null",
    "closed": "<&-",
    "names": "<{here}/list.txt",
    "bytes": "<{here}/random.bin",
    "endless": "<{here}/zero",
}
STDOUT = {"file": "", "closed": ">&-", "full": ">{here}/full", "no reader": "| true"}

# --- calls ------------------------------------------------------------------------------------------------------------

PREAMBLE = """
import itertools, os, sys, tempfile
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
import numpy as np
import torch
from PIL import Image
import tessella
from tessella import data
from tessella.engine.optimize import Optimized
from tessella.export import export
from tessella import info
from tessella import bulk, cards, evaluation, inspection, performance
from tessella.evaluation import leakage
from tessella.search import duplicates as dedup, index, query as search
from tessella import training
from tessella.training import config as recipes

def predictor(): return tessella.load("local-dir:tiny", engine="eager", batch_size=4)
def model(): return tessella.create_model("local-dir:tiny", pretrained=True).eval()
def fast(): return tessella.optimize(model(), engine="eager", device="cpu")
def there(): return search.Index("run")
def spec(): return data.InputSpec(height=16, width=16)
def look(result):
    if hasattr(result, "__next__"): result = list(itertools.islice(result, 30))
    return str(repr(result))[:0]
predictor.of, fast.of, there.of, spec.of = tessella.Predictor, Optimized, search.Index, data.InputSpec
"""


@functools.cache
def namespace() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(PREAMBLE, names)
    return names


RECORDS = (
    "tessella.Prediction",
    "tessella.Record",
    "data.Limits",
    "data.Labels",
    "data.LabelledImages",
    "data.Source",
)  # hold what they are given
WHERE = ("token", "endpoint")  # a value could reach out to a network
VALUES = [
    "None", "True", "False", "0", "1", "-1", "3", "10**30", "2**31", "1.5", "-0.0", "float('nan')", "float('inf')",
    "1j", "Decimal('1')", "Fraction(1, 3)", "''", "'nonsense'", "' '", "'a\\nb'", "'\\0'", "'\\udce9.png'",
    "'\\ud800'", "'x' * 300", "'a/' * 3000", "b''", "b'\\xff' * 10", "b'photos/0.jpg'", "bytearray(3)",
    "memoryview(b'abc')", "[]", "[None]", "[[]]", "['']", "[0]", "[-1]", "[10**30]", "[1.5]", "['nonsense']",
    "['photos/0.jpg']", "['photos/0.jpg', None, 3, 'nowhere.png']", "()", "(1, 2, 3)", "(0, 0, 0)",
    "(float('nan'),) * 3", "('a', 'b', 'c')", "(3, 10**9, 10**9)", "{}", "{'a': 1}", "{1: 2}", "set()",
    "frozenset([1])", "range(3)", "iter([])", "(x for x in 'ab')", "object()", "int", "...", "len", "lambda: 0",
    "lambda *a, **k: 0", "Exception('x')", "slice(1)", "'photos'", "'photos/0.jpg'", "Path('photos/0.jpg')",
    "Path('nowhere')", "Path('.')", "'odd'", "'fifo'", "'zero'", "'null'", "'self'", "'run'", "'run-facts'",
    "'run-seal'", "'run-cut'", "'unindexed'", "'trained'", "'data'", "'labels.csv'", "'bad.csv'", "'rows.parquet'",
    "'photos.tar'", "'cut.tar'", "'small.json'", "'deep.json'", "'vector.npy'", "'object.npy'", "'weights.pth'",
    "'made'", "'made/a/b'", "'/proc/nope/x'", "'full'", "'local-dir:tiny'", "'local-dir:nowhere'", "'hf-hub:a/b'",
    "'mixer_s32_224'", "'resnet50'", "np.zeros(3)", "np.zeros((2, 2, 3), np.uint8)", "np.zeros((0, 2, 3), np.uint8)",
    "np.zeros((2, 2, 7))", "np.zeros((4, 2, 2, 3), np.uint8)", "np.full((2, 2, 3), np.nan)", "np.zeros((2, 2), bool)",
    "np.zeros((2, 2), np.int64)", "np.zeros((2, 2), complex)", "np.array('x')", "np.array(None)",
    "np.array([{}], object)", "np.float32('nan')", "np.int64(3)", "np.datetime64('now')", "np.zeros(2, 'U3')",
    "torch.zeros(3)", "torch.zeros(1, 3, 16, 16)", "torch.zeros(0, 3, 16, 16)", "torch.zeros(1, 3, 7, 9)",
    "torch.zeros(2, 3, 16, 16).long()", "torch.zeros(1, 3, 16, 16, device='meta')",
    "torch.zeros(2, 2, dtype=torch.complex64)", "torch.zeros(3, 3).to_sparse()", "torch.float16",
    "torch.device('meta')", "torch.nn.Linear(2, 2)", "Image.new('RGB', (1, 1))", "Image.new('I;16', (3, 2))",
    "Image.new('P', (0, 0))", "open('photos/0.jpg', 'rb')", "open('list.txt')", "predictor()", "model()", "spec()",
    "data.Source('a', 'nowhere')",
]  # fmt: skip

_ONE = (
    "'photos/0.jpg'",
    "open('photos/0.png', 'rb').read()",
    "Image.open('photos/0.png')",
    "np.zeros((9, 8, 3), np.uint8)",
)
_MANY = (*_ONE, "['photos/0.jpg', 'photos/1.png']", "[np.zeros((9, 8), np.uint8)] * 5")
_NAME = ("'mixer_s32_224'", "'convmixer_256_8_ks3_p4.cifar10'")
_INTO = ("'made'", "Path('made')")
_DATA = ("'data'", "'labels.csv'", "Path('rows.parquet')")
_BATCH = ("torch.zeros(2, 3, 16, 16)",)
CALLS: dict[str, dict[str, tuple[str, ...]]] = {
    "tessella.load": dict(
        name=("'local-dir:tiny'", "'convmixer_256_8_ks3_p4.cifar10'", "None"), engine=("'eager'",), img_size=(),
        num_classes=(),
    ),
    "tessella.create_model": dict(
        model_name=_NAME, num_classes=(), img_size=(), in_chans=(), drop_rate=(), drop_path_rate=(), global_pool=(),
        patch_size=(),
    ),
    "tessella.optimize": dict(net=("model()",), engine=("'eager'",), device=("'cpu'",)),
    "tessella.save_pretrained": dict(model=("model()",), folder=_INTO),
    "tessella.push_to_hub": dict(model=("model()",), repo_id=("'a/b'",)),
    "tessella.list_models": {},
    "tessella.list_modules": {},
    "tessella.list_pretrained": {},
    "tessella.is_model": dict(model_name=_NAME),
    "tessella.get_pretrained_cfg": dict(model_name=_NAME),
    "tessella.get_arch_pretrained_cfgs": dict(model_name=_NAME),
    "tessella.load_checkpoint": dict(model=("model()",), checkpoint_path=("'tiny/model.safetensors'", "'weights.pth'")),
    "tessella.model_entrypoint": dict(model_name=_NAME),
    "tessella.get_pretrained_cfg_value": dict(model_name=_NAME, cfg_key=("'mean'",)),
    "data.create_dataset": dict(name=("''",), root=("'data'",)),
    "data.create_loader": dict(
        dataset=("data.ImageDataset('data')",), input_size=("16",), batch_size=("2",), num_workers=("0",)
    ),
    "data.ImageDataset": dict(root=("'data'",)),
    "cards.card": dict(model=_NAME),
    "cards.compare_models": dict(patterns=("['convit']",)),
    "tessella.Predictor": dict(model=("model()",)),
    "predictor().classify": dict(images=_MANY),
    "predictor().embed": dict(images=_MANY),
    "predictor().predict": dict(images=_MANY),
    "predictor().features": dict(images=_MANY),
    "predictor().records": dict(images=_MANY),
    "predictor().outputs": dict(images=("['photos/0.jpg', 'nowhere']",)),
    "fast().embed": dict(x=_BATCH),
    "fast().predict": dict(x=_BATCH),
    "fast().__call__": dict(x=_BATCH),
    "data.decode.decode": dict(source=_ONE),
    "data.InputSpec": {},
    "data.InputSpec.from_cfg": dict(cfg=("{'input_size': (3, 16, 16)}",)),
    "data.create_transform": dict(input_size=("16", "(3, 16, 16)")),
    "data.create_transform(input_size=16)": dict(source=_ONE),
    "data.resolve_data_config": dict(args=("{}",), pretrained_cfg=("{}",)),
    "data.resolve_model_data_config": dict(model=("model()",)),
    "data.load_pixels": dict(source=_ONE, spec=("spec()",)),
    "data.prepare": dict(pixels=("np.zeros((9, 8, 3), np.uint8)",), spec=("spec()",)),
    "data.normalise": dict(images_BHWC=("np.zeros((1, 16, 16, 3), np.uint8)",), spec=("spec()",)),
    "data.labels_for": dict(dataset=("'imagenet-1k'",)),
    "data.labels_for_classes": dict(num_classes=("1000",)),
    "data.open_labelled": dict(data=_DATA),
    "data.open_split": dict(data=_DATA),
    "data.iter_sources": dict(inputs=("['photos']", "['@list.txt', 'odd']", "['photos.tar']")),
    "bulk.run": dict(
        inputs=("['photos']",), out=_INTO, predictor=("predictor()",),
        settings=("bulk.RunSettings(processes=1, shard_rows=4)",),
    ),
    "bulk.RunSettings": dict(processes=("1",), shard_rows=("4",), top=("3",)),
    "bulk.verify": dict(out=("'run'", "'run-cut'")),
    "bulk.repair": dict(out=("'run-flipped'", "'run-facts'")),
    "index.build_index": dict(out=("'unindexed'", "'run'")),
    "search.Index": dict(out=("'run'",)),
    "there().search": dict(queries=("'photos/0.jpg'", "np.ones(16, np.float32)")),
    "there().query": dict(item=("'photos/0.jpg'",)),
    "dedup.dedup": dict(out=("'run'",)),
    "training.train": dict(
        data=_DATA, out=_INTO, config=("recipes.TrainConfig.from_dict(recipes.read_config('small.json'))",),
        workers=("0",),
    ),
    "training.DataSettings": dict(data=_DATA),
    "training.preset_config": dict(preset=("'finetune'", "''"), epochs=("1",), lr=()),
    "training.TrainConfig": dict(model=_NAME),
    "training.TrainConfig.from_dict": dict(values=("{}", "{'epochs': 2}")),
    "recipes.read_config": dict(file=("'small.json'", "'types.json'", "'deepobject.json'", "'digits.json'")),
    "inspection.inspect": dict(
        data=_DATA, model=("predictor()", "'local-dir:tiny'"), out=_INTO,
        settings=("inspection.InspectionSettings(min_images=2)",),
    ),
    "inspection.InspectionSettings": dict(near=("0.5",), folds=("2",), unlabeled=("True",)),
    "evaluation.probe": dict(
        data=_DATA, model=("predictor()", "'local-dir:tiny'"), settings=("evaluation.ProbeSettings(shots=[1])",)
    ),
    "evaluation.ProbeSettings": dict(shots=("[1]",)),
    "evaluation.evaluate": dict(
        data=_DATA, models=("[predictor()]", "['local-dir:tiny']"),
        settings=("evaluation.EvaluationSettings(engine='eager')",),
    ),
    "evaluation.EvaluationSettings": dict(engine=("'eager'",)),
    "leakage.open_data": dict(data=_DATA),
    "info.info": dict(name=_NAME),
    "performance.bench": dict(
        models=("['convmixer_256_8_ks3_p4']",),
        settings=("performance.BenchmarkSettings(batch_sizes=[1], engines=['eager'], rounds=1)",),
    ),
    "performance.BenchmarkSettings": dict(batch_sizes=("[1]",), engines=("['eager']",), rounds=("1",)),
    "performance.tune": dict(
        model=("model()",), engines=("['rewritten']",), precisions=("['float32']",), seconds=("1",)
    ),
    "export": dict(predictor=("tessella.load('local-dir:tiny', engine='openvino')",), folder=_INTO),
}  # fmt: skip
