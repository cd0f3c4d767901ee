"""Time the starts of commands: each in a new process, first with an empty cache and then again."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PHOTO = "examples/cat.jpg"
PUBLISHED = "mixer_b16_224"  # the size of the model that is read from safetensors
COMMANDS = {  # what the rows are called: arguments; {folder} has a saved model and a run with an index
    "tessella --help": ["--help"],
    "tessella list": ["list"],
    "tessella info convit_base.fb_in1k": ["info", "convit_base.fb_in1k"],
    "tessella classify photo.jpg": ["classify", PHOTO],
    "tessella embed photo.jpg": ["embed", PHOTO],
    "tessella search, in a small run": ["search", "{folder}/run", PHOTO, "--top", "2"],
    f"tessella classify photo.jpg, {PUBLISHED} from safetensors": [
        "classify", PHOTO, "-m", "local-dir:{folder}/model",
    ],
}  # fmt: skip


def prepare(folder: Path, environment: dict[str, str]) -> None:
    """Save a model of published size with random weights, and make a small run with an index."""
    program = f"import sys, tessella; tessella.save_pretrained(tessella.create_model({PUBLISHED!r}), sys.argv[1])"
    commands = [
        [sys.executable, "-c", program, str(folder / "model")],
        [sys.executable, "-m", "tessella", "run", "examples", "--out", str(folder / "run")],
        [sys.executable, "-m", "tessella", "index", str(folder / "run")],
    ]
    for command in commands:
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)


def time_starts(rounds: int) -> Iterator[tuple[str, list[float], str]]:
    """Yield for each command: its name, the seconds of each round, and the reason if it failed.

    The commands alternate. Before the first round, the cache is empty.
    """
    with tempfile.TemporaryDirectory(prefix="tessella-starts-") as temporary:
        folder = Path(temporary)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TESSELLA_CACHE": str(folder / "preparation")}
        prepare(folder, environment)
        environment["TESSELLA_CACHE"] = str(folder / "cache")
        seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
        errors: dict[str, str] = {}
        for _ in range(rounds):
            for name, arguments in COMMANDS.items():
                if name in errors:
                    continue
                command = [sys.executable, "-m", "tessella", *(part.format(folder=folder) for part in arguments)]
                start = time.perf_counter()
                done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
                seconds[name].append(time.perf_counter() - start)
                if done.returncode:
                    errors[name] = " ".join(done.stderr.split())[:200]
        for name, values in seconds.items():
            yield name, values, errors.get(name, "")
