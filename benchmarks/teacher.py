"""Export an ImageNet-1k classifier in a .tflite file to a folder that Tessella reads: `python benchmarks/teacher.py`.

The file is MobileNetV2 of google-coral/test_data (mobilenet_v2_1.0_224_quant.tflite, Apache-2.0) or one like it: one
image of 224 x 224 uint8 pixels in, probabilities of 1,001 classes out, of which the first is background. The exported
model gives the logits of the other 1,000 classes, and the pooled features before the classifier as the embedding.
Every command and benchmark then measures it in the same way as our own models, as `local-dir:FOLDER`.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np

from tessella.data.labels import labels_for
from tessella.data.spec import InputSpec
from tessella.engine.artefacts import GRAPHS
from tessella.engine.exported import Card, write_card
from tessella.engine.openvino import core
from tessella.engine.runtime import op, ov

CROP = 0.875  # of the shorter side, after a resize to 256 pixels
NAME = "mobilenet_v2_1.0_224_quant.tflite"


def export_teacher(file: Path, folder: Path, crop_pct: float = CROP) -> Path:
    """Write the folder of an exported model with the classifier in `file`, and return it.

    crop_pct: fraction of the resized image's side that the crop of 224 pixels keeps.
    """
    graph, classes, width = read_graph(file)
    labels = labels_for("imagenet-1k")
    if classes != len(labels):
        raise SystemExit(f"{file} has {classes} classes besides the background, expected {len(labels)}")
    folder.mkdir(parents=True)
    ov.save_model(graph, folder / GRAPHS["openvino"], compress_to_fp16=False)
    spec = InputSpec(crop_pct=crop_pct)
    identity = dict(file=hashlib.sha256(file.read_bytes()).hexdigest(), spec=spec.to_cfg())
    card = Card(file.name, file.stem, "openvino", "int8", classes, width, spec, labels.names, labels.synsets, identity)
    write_card(folder, card)
    return folder


def read_graph(file: Path) -> tuple[ov.Model, int, int]:
    """Return the classifier as a graph from (B,H,W,3) uint8 images to logits (B,K) and features (B,D), and K and D."""
    model = core().read_model(file)
    nodes = model.get_ordered_ops()
    softmax = next(node for node in reversed(nodes) if node.get_type_name() == "Softmax")
    pool = next(node for node in reversed(nodes) if node.get_type_name() == "AvgPool")
    for node in nodes:
        if node.get_type_name() == "Reshape":  # to (1,1001): let it keep any batch size
            shape = list(node.output(0).get_shape())
            node.input(1).replace_source_output(op.constant(np.array([-1, *shape[1:]], np.int32)).output(0))
    scores = softmax.input_value(0)
    one, end = op.constant(np.array([1])), op.constant(np.array([np.iinfo(np.int64).max]))
    logits = op.slice(scores, one, end, op.constant(np.array([1])), op.constant(np.array([1])))
    features = op.squeeze(pool, op.constant(np.array([2, 3])))
    graph = ov.Model([op.result(logits), op.result(features)], model.get_parameters(), file.stem)
    graph.reshape([-1, *model.input(0).get_shape()[1:]])
    classes, width = (node.output(0).get_partial_shape()[1].get_length() for node in (logits, features))
    return graph, classes, width


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.tflite")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new folder, used as local-dir:FOLDER")
    parser.add_argument("--crop", type=float, default=CROP, help=f"crop_pct of the input [default: {CROP}]")
    args = parser.parse_args()
    print(f"local-dir:{export_teacher(args.file, args.folder, args.crop)}")


if __name__ == "__main__":
    main()
