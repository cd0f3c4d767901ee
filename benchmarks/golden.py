"""Compute the golden outputs of `tessella verify`: scripts/bench golden [--out FILE].

For each built-in model, the logits and embeddings of the photographs in the package, by the unchanged model in PyTorch
in float64; and for each way in which a published or built-in model resizes its images, the hashes of the pixels by
Pillow alone. The file in the package is replaced only with another --out, and the tests compare it with a new
computation.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import tessella
from tessella.data.spec import InputSpec
from tessella.verification.goldens import SIGNIFICANT_DIGITS, key_of, photograph_paths, pixel_hash
from tessella.weights.catalogue import CATALOGUE


def resize_with_pillow(path: Path, spec: InputSpec) -> np.ndarray:
    """Resize the shorter side and crop the center by timm's rules: (H,W,3) uint8; for square inputs."""
    assert (spec.height, spec.crop_mode) == (spec.width, "center")
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    goal, short = int(spec.height / spec.crop_pct), min(image.size)
    size = [goal if side == short else int(goal * side / short) for side in image.size]
    left, top = (round((side - spec.width) / 2) for side in size)
    resized = image.resize((size[0], size[1]), Image.Resampling[spec.interpolation.upper()])
    return np.array(resized.crop((left, top, left + spec.width, top + spec.height)))


def compute_answers(name: str) -> dict[str, object]:
    """Return the golden outputs of a built-in model, rounded."""
    model = tessella.create_model(name, pretrained=True).eval().double()
    spec = InputSpec.from_cfg(model.pretrained_cfg)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (spec.mean, spec.std))
    answers = []
    for path in photograph_paths():
        pixels = torch.from_numpy(resize_with_pillow(path, spec)).permute(2, 0, 1).double() / 255
        with torch.inference_mode():
            features = model.forward_features(((pixels - mean) / std)[None])
            logits, embedding = (model.forward_head(features, pre_logits=before)[0] for before in (False, True))
        parts = dict(logits=logits, embedding=embedding)
        answers.append({key: [float(f"{v:.{SIGNIFICANT_DIGITS}g}") for v in part] for key, part in parts.items()})
    return dict(name=name, answers=answers)


def compute() -> dict[str, object]:
    """Return the contents of the file."""
    specs = {key_of(spec): spec for row in CATALOGUE.values() for spec in [InputSpec.from_cfg(row.to_dict())]}
    pixels = {
        key: [pixel_hash(resize_with_pillow(path, spec)) for path in photograph_paths()]
        for key, spec in sorted(specs.items())
    }
    names = [name for name, row in CATALOGUE.items() if row.file]
    models = {tessella.load(name, precision="float32").fingerprint: compute_answers(name) for name in names}
    return dict(models=models, pixels=pixels)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench golden", description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file; without it, only a summary is printed")
    args = parser.parse_args()
    values = compute()
    text = json.dumps(values, separators=(",", ":")) + "\n"
    if args.out:
        args.out.write_text(text)
    print(f"{len(values['models'])} models, {len(values['pixels'])} ways to resize, {len(text) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
