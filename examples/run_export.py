"""Classify photographs with a folder that `tessella export` wrote, without Tessella and without PyTorch.

    python examples/run_export.py exported examples/cat.jpg

It needs NumPy, Pillow and the runtime of the export: OpenVINO (model.xml) or ONNX Runtime (model.onnx).
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def open_model(folder):
    """Return a function from (B,H,W,3) uint8 images to logits (B,classes) and embeddings (B,width)."""
    if (folder / "model.xml").exists():
        import openvino

        compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda images: tuple(compiled(images).values())
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})


def load_image(path, spec):
    """Resize the shorter side and crop the center, as timm does for evaluation; the model normalizes the pixels."""
    (_, height, width), resampling = spec["input_size"], Image.Resampling[spec["interpolation"].upper()]
    with Image.open(path) as image:
        image = image.convert("RGB")
    goal = int(height / spec["crop_pct"])  # this program is for square inputs and the crop mode "center"
    size = [goal if side == min(image.size) else int(goal * side / min(image.size)) for side in image.size]
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return np.asarray(image.resize(size, resampling).crop((left, top, left + width, top + height)))


def main():
    """Print the most probable classes of each photograph."""
    folder, *paths = map(Path, sys.argv[1:])
    card = json.loads((folder / "tessella.json").read_text("utf-8"))
    logits, _ = open_model(folder)(np.stack([load_image(path, card["spec"]) for path in paths]))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    for path, row in zip(paths, powers / powers.sum(1, keepdims=True), strict=True):
        print(path, *(f"{card['labels'][i]} {row[i]:.4f}" for i in row.argsort()[::-1][:3]), sep="\n  ")


if __name__ == "__main__":
    main()
