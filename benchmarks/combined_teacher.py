"""Write a teacher with the embeddings of two models: `python benchmarks/combined_teacher.py FILE FOLDER`.

FILE is the first one, an ImageNet-1k classifier in a .tflite file (see teacher.py), which also gives the logits. The
second one is built in and was trained on CIFAR-10. It sees the same 224 x 224 pixels, averaged over squares to its
32 x 32. The embedding is that of the first followed by that of the second. Each is scaled to length 1 and then so that
the variance over the images of --images is the same for both, times the square of --weight for the second. FOLDER is
used as `tessella train --teacher FOLDER`.

Letters for shapes: B images, D width of the embedding of the first model, E of the second.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path

import numpy as np
from neighbors import outputs_of
from teacher import read_graph

from tessella.data.labels import labels_for
from tessella.data.sources import iter_sources
from tessella.data.spec import InputSpec
from tessella.engine.artefacts import GRAPHS
from tessella.engine.exported import Card, write_card
from tessella.engine.openvino import core
from tessella.engine.runtime import op, ov
from tessella.export import export
from tessella.predictor import load
from tessella.results import FloatArray
from tessella.weights.catalogue import default_model

COUNT = 512  # images on which the scales are measured


def write_teacher(file: Path, second: str, scales: tuple[float, float], folder: Path) -> Path:
    """Write the exported folder of the combined teacher, and return it. scales: of the two embeddings."""
    first, classes, width = read_graph(file)
    images = first.input(0)
    with tempfile.TemporaryDirectory() as exported:
        other = core().read_model(
            export(load(second, engine="openvino"), Path(exported) / "model") / GRAPHS["openvino"]
        )
        side, pixels = other.input(0).get_partial_shape()[1].get_length(), other.get_parameters()[0]
        (converted,) = pixels.output(0).get_target_inputs()
        averaged = shrink(images, images.get_partial_shape()[1].get_length() // side)
        converted.get_node().output(0).replace(averaged.output(0))
        logits, features = (value.get_node().input_value(0) for value in first.outputs)
        embedding = next(value for value in other.outputs if "embedding" in value.get_names()).get_node().input_value(0)
        parts = [scaled(value, scale) for value, scale in zip((features, embedding), scales, strict=True)]
        results = [op.result(logits), op.result(op.concat(parts, 1))]
        for result, name in zip(results, ("logits", "embedding"), strict=True):
            result.output(0).get_tensor().set_names({name})
        graph = ov.Model(results, first.get_parameters(), "teacher")
        folder.mkdir(parents=True)
        ov.save_model(graph, folder / GRAPHS["openvino"], compress_to_fp16=False)
    labels, spec = labels_for("imagenet-1k"), InputSpec(crop_pct=1.0)
    identity = dict(file=hashlib.sha256(file.read_bytes()).hexdigest(), second=second, scales=list(scales))
    total = width + embedding.get_partial_shape()[1].get_length()
    card = Card("teacher", "teacher", "openvino", "int8", classes, total, spec, labels.names, labels.synsets, identity)
    write_card(folder, card)
    return folder


def shrink(images: ov.Output, factor: int) -> ov.Node:
    """Return uint8 images (B,H,W,3) averaged over squares, as float32 (B,H/factor,W/factor,3)."""
    nchw = op.transpose(op.convert(images, "f32"), op.constant(np.array([0, 3, 1, 2])))
    pooled = op.avg_pool(nchw, [factor, factor], [0, 0], [0, 0], [factor, factor], True)
    return op.transpose(pooled, op.constant(np.array([0, 2, 3, 1])))


def scaled(vectors: ov.Output, scale: float) -> ov.Node:
    """Return vectors (B,D) of this length."""
    units = op.normalize_l2(vectors, op.constant(np.array([1])), 1e-12, "add")
    return op.multiply(units, op.constant(np.float32(scale)))


def deviations(vectors_ND: FloatArray, width: int) -> tuple[float, float]:
    """Return the root mean square distance from the mean of the first `width` components, and of the others."""
    squares_D = vectors_ND.var(0)
    return float(squares_D[:width].sum() ** 0.5), float(squares_D[width:].sum() ** 0.5)


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new folder")
    parser.add_argument(
        "--images", nargs="+", required=True, metavar="INPUT", help="images for the variances, as many of each"
    )
    parser.add_argument("--second", default=default_model("classify"), metavar="NAME", help="the second model")
    parser.add_argument("--weight", type=float, default=1.0, help="of the second embedding [default: 1]")
    args = parser.parse_args()
    rng, chosen = np.random.default_rng(0), []
    for name in args.images:
        sources = [*iter_sources([name])]
        chosen += [sources[place] for place in rng.permutation(len(sources))[: COUNT // len(args.images)]]
    with tempfile.TemporaryDirectory() as folder:
        trial = write_teacher(args.file, args.second, (1.0, 1.0), Path(folder) / "trial")
        predictor = load(f"local-dir:{trial}")
        _, vectors_ND = outputs_of(predictor, chosen)
    first, second = deviations(vectors_ND, vectors_ND.shape[1] - load(args.second).width)
    scales = 1 / first, args.weight / second
    print(write_teacher(args.file, args.second, scales, args.folder))
    print(f"scales {scales[0]:.4f} and {scales[1]:.4f}, measured on {len(chosen)} images")


if __name__ == "__main__":
    main()
