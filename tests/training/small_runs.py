"""Images and configs for the tests of training: small enough for seconds on two cores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tessella.training.config import TrainConfig
from tessella.training.events import EpochEvent, StepEvent, TrainingEvent, TrainingRemark
from tessella.training.loop import train
from tessella.training.setup import DataSettings

CLASSES = ("bright", "dark")
MIXER = dict(embed_dim=16, num_blocks=2, patch_size=4, img_size=16)
FAMILIES: dict[str, dict[str, Any]] = {
    "convmixer_768_32": dict(dim=16, depth=2, kernel_size=3, patch_size=4),
    "convit_tiny": dict(embed_dim=8, num_heads=4, depth=3, local_up_to_layer=2, patch_size=4, img_size=16),
    "mixer_s32_224": MIXER,
    "gmixer_12_224": MIXER,
    "crossvit_tiny_240": dict(
        embed_dim=[8, 16], depth=[[1, 1, 0]], num_heads=[2, 2], patch_size=[4, 4], img_size=16, img_scale=[1.0, 0.5]
    ),
}


def make_images(folder: Path, count: int = 48, side: int = 16, seed: int = 0) -> Path:
    """Write noise that is dark or bright, in one folder per class under train and val; return `folder`."""
    rng = np.random.default_rng(seed)
    for split, images in (("train", count), ("val", count // 2)):
        for label, name in enumerate(("dark", "bright")):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(images // 2):
                pixels = rng.integers(0, 140, (side, side, 3)) + 110 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")
    return folder


def small(model: str = "mixer_s32_224", **changes: Any) -> TrainConfig:
    """Return a config of three epochs with three steps each."""
    settings: dict[str, Any] = dict(
        model=model,
        model_args=FAMILIES[model],
        epochs=3,
        batch_size=16,
        lr=3e-3,
        label_smoothing=0.0,
        checkpoint_minutes=60,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    return TrainConfig.from_dict({**settings, **changes})


def run(data: Path | DataSettings, out: Path, config: TrainConfig | None = None, **args: Any) -> list[TrainingEvent]:
    """Train to the end; return the events."""
    events: list[TrainingEvent] = []
    train(data, out, config or small(), workers=0, on_event=events.append, **args)
    return events


def losses(events: list[TrainingEvent]) -> list[float]:
    return [event.loss for event in events if isinstance(event, StepEvent)]


def epochs_of(events: list[TrainingEvent]) -> list[EpochEvent]:
    return [event for event in events if isinstance(event, EpochEvent)]


def remarks_of(events: list[TrainingEvent]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, TrainingRemark))
