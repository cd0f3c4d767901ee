"""Train a classifier from scratch on images in Parquet: one plain loop, as the built-in model was made.

    python -m tessella.tasks.train TRAIN.parquet --test TEST.parquet --out FOLDER

Parquet files are in the Hugging Face image layout: a column `image` with {bytes, path}, and an integer `label` whose
class names stand in the schema. Images must have the size that the model is trained for; nothing is resized. The run
logs one JSON line an epoch to FOLDER/log.jsonl, can be interrupted and goes on from its last whole epoch, and ends
with a folder that `tessella.load("local-dir:FOLDER")` reads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.decode import decode
from ..data.transforms import InputSpec, normalise
from ..errors import ImageError, UsageError
from ..models import build
from ..models.base import ImageModel
from ..weights.save import save_pretrained

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything a run depends on besides its data; written into the first line of the log."""

    model: str = "convmixer_256_8_ks3_p4"
    epochs: int = 26
    batch_size: int = 64
    peak_lr: float = 3e-3  # AdamW, reached after `warmup` of all steps, then linearly down to 0
    warmup: float = 0.2
    weight_decay: float = 0.05  # not on biases and norms
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    crop_padding: int = 4  # pixels: a random crop of the image reflected this far beyond its border, and a random flip
    seed: int = 0
    mean: tuple[float, ...] = CIFAR10_MEAN
    std: tuple[float, ...] = CIFAR10_STD


def read_images(path: str | Path) -> tuple[Tensor, Tensor, list[str]]:
    """A Parquet file -> (N,H,W,3) uint8 images of one size, (N,) int64 labels, and the class names."""
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError(
            "missing_dependency", "reading Parquet needs pyarrow", hint='pip install "tessella[train]"'
        ) from None
    if not Path(path).is_file():
        raise UsageError("bad_argument", f"there is no Parquet file {str(path)!r}")
    table = pq.read_table(path, columns=["image", "label"])
    images = [decode(row["bytes"]) for row in table["image"].to_pylist()]
    if len(sizes := {image.shape for image in images}) != 1:
        raise ImageError("bad_array", f"the images have {len(sizes)} sizes, training needs one", hint="resize them")
    labels = torch.tensor(table["label"].to_pylist())
    features = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get("label", {}).get("names") or [str(i) for i in range(int(labels.max()) + 1)]
    return torch.from_numpy(np.stack(images)), labels, names


def augment(images_BHWC: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Each uint8 image cropped at random from its reflection-padded self and flipped with probability 1/2."""
    count, height, width, _ = images_BHWC.shape
    padded = F.pad(images_BHWC.permute(0, 3, 1, 2), (padding,) * 4, mode="reflect").permute(0, 2, 3, 1)
    top, left = torch.randint(2 * padding + 1, (2, count, 1, 1), generator=generator)
    rows = top + torch.arange(height)[None, :, None]
    cols = left + torch.arange(width)[None, None, :]
    flipped = torch.rand(count, 1, 1, generator=generator) < 0.5
    cols = torch.where(flipped, cols.flip(2), cols)
    return padded[torch.arange(count)[:, None, None], rows, cols]


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, spec: InputSpec, device: torch.device) -> float:
    """Share of images whose highest logit is their label; every image counts once."""
    model.eval()
    hits = 0
    for batch, expected in zip(images.split(500), labels.split(500), strict=True):
        logits = model(normalise(batch.to(device), spec).contiguous(memory_format=torch.channels_last))
        hits += int((logits.argmax(1).cpu() == expected).sum())
    return hits / len(labels)


def train(train_path: str | Path, test_path: str | Path, out: str | Path, cfg: TrainConfig | None = None) -> ImageModel:
    """Train cfg.model on one Parquet file, report on the other each epoch, save the last epoch's model in `out`."""
    cfg = cfg or TrainConfig()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    resume = out / "last.pt"

    images, labels, names = read_images(train_path)
    test_images, test_labels, _ = read_images(test_path)
    height, width = images.shape[1:3]
    spec = InputSpec(height=height, width=width, crop_pct=1.0, mean=cfg.mean, std=cfg.std)

    torch.manual_seed(cfg.seed)
    model = build(cfg.model, num_classes=len(names)).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from torch's overloads
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [dict(params=decayed, weight_decay=cfg.weight_decay), dict(params=plain, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=cfg.peak_lr, fused=True)
    steps = cfg.epochs * (len(images) // cfg.batch_size)
    rise = max(cfg.warmup * steps, 1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, max(steps - step, 0) / max(steps - rise, 1))
    )
    first = 0
    if resume.exists():
        saved = torch.load(resume, weights_only=True, map_location=device)
        if saved["config"] != dataclasses.asdict(cfg):
            raise UsageError("bad_argument", f"{out} holds a run with another configuration", hint="use a new --out")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        first = saved["epoch"] + 1
    else:
        log(out, dict(config=dataclasses.asdict(cfg), images=len(images), test_images=len(test_images),
                      parameters=sum(p.numel() for p in model.parameters()), device=str(device),
                      threads=torch.get_num_threads(), torch=torch.__version__))  # fmt: skip

    for epoch in range(first, cfg.epochs):
        start, total_loss = time.perf_counter(), 0.0
        model.train()
        # seeded by epoch, so that a resumed run sees what the uninterrupted one would have seen
        generator = torch.Generator().manual_seed(1_000_003 * cfg.seed + epoch)
        order = torch.randperm(len(images), generator=generator)
        batches = order[: len(order) // cfg.batch_size * cfg.batch_size].split(cfg.batch_size)
        for index in batches:
            x = normalise(augment(images[index], cfg.crop_padding, generator).to(device), spec)
            logits = model(x.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, labels[index].to(device), label_smoothing=cfg.label_smoothing)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            total_loss += loss.item()
        top1 = accuracy(model, test_images, test_labels, spec, device)
        log(out, dict(epoch=epoch, loss=round(total_loss / len(batches), 4), test_top1=top1,
                      lr=scheduler.get_last_lr()[0], seconds=round(time.perf_counter() - start, 1)))  # fmt: skip
        state = dict(config=dataclasses.asdict(cfg), epoch=epoch, model=model.state_dict(),
                     optimizer=optimizer.state_dict(), scheduler=scheduler.state_dict())  # fmt: skip
        torch.save(state, resume.with_suffix(".tmp"))
        os.replace(resume.with_suffix(".tmp"), resume)  # noqa: PTH105 - a kill leaves the old file or the new one

    model = model.cpu().eval()
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as above
    model.pretrained_cfg = dict(
        architecture=cfg.model,
        num_classes=len(names),
        fixed_input_size=False,
        label_names=tuple(names),
        **spec.to_cfg(),
    )
    save_pretrained(model, out)
    return model


def log(out: Path, row: dict[str, Any]) -> None:
    line = json.dumps(row)
    print(line, flush=True)
    with (out / "log.jsonl").open("a") as file:
        file.write(line + "\n")


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("python -m tessella.tasks.train", description=__doc__.splitlines()[0])
    parser.add_argument("train", help="Parquet file to learn from")
    parser.add_argument("--test", required=True, help="Parquet file to report on")
    parser.add_argument("--out", required=True, help="folder for the log, the resumable state and the model")
    parser.add_argument("--model", default=TrainConfig.model)
    parser.add_argument("--epochs", type=int, default=TrainConfig.epochs)
    parser.add_argument("--seed", type=int, default=TrainConfig.seed)
    args = parser.parse_args()
    train(args.train, args.test, args.out, TrainConfig(model=args.model, epochs=args.epochs, seed=args.seed))


if __name__ == "__main__":
    main()
