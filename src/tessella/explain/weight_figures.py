"""All figures of the weights of a model, as the papers show them: `explain_weights`.

Which figures there are depends on the family; attention by content is that to one image.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TypeAlias

from ..errors import ImageError, OutputError, UsageError
from ..inputs import AnyImage
from ..models.base import ImageModel
from ..models.convit import ConViT
from ..models.convmixer import ConvMixer
from ..models.crossvit import CrossViT
from ..models.mixer import MlpMixer
from ..plots.figures import plain
from ..predictor import Predictor
from ..storage import check_writable, write_bytes
from . import attention_figures as attention
from . import kernel_figures as kernels
from .subject import PreparedImage, Subject
from .weights import (
    SPARSITY_THRESHOLD,
    convit_attention,
    convit_content_attention,
    convit_gates,
    convit_position_attention,
    crossvit_attention,
    depthwise_kernels,
    patch_filters,
    sparsity,
    token_mixing,
)

PHOTOGRAPH = "cat.jpg"  # of this package, whose attention is drawn if no image is given
Figure: TypeAlias = tuple[str, Callable[[], bytes]]  # name of the file, and what draws its content, a PNG


def explain_weights(
    model: Subject | Predictor | ImageModel, out: str | Path, image: AnyImage | None = None
) -> list[Path]:
    """Draw the weights of a model into the folder `out`, and return the files, PNG pictures.

    ConViT: gates, attention by position and by content, non-locality, patch filters. CrossViT: attention of both
    branches and of each fusion. MLP-Mixer, gMixer, ResMLP, gMLP: token-mixing weights sorted by frequency, sparsity,
    patch filters; for ResMLP and gMLP, which patches each patch reads. ConvMixer: patch filters, depthwise kernels and
    their reach. Large models are shown in part, which the titles say. An existing file is replaced as a whole.

    model: a Predictor, a model of `create_model`, or a Subject. out: is created if it is missing. image: one image, as
    in `Predictor.classify`, whose attention is drawn; None: a photograph of this package.
    Raises UsageError `bad_argument` for an exported model and `missing_dependency` without matplotlib, ImageError for
    an image that cannot be read, OutputError `output_failed` for a folder that cannot be written.
    """
    folder = Path(out)
    try:
        check_writable(folder)
    except OSError as error:
        raise OutputError(
            "output_failed",
            f"the folder {str(folder)!r} cannot be written: {error.strerror or error}",
            hint="choose another folder",
        ) from None
    subject = _subject(model)
    paths = []
    for name, draw in weight_figures(subject, _prepare(subject, image)):
        paths.append(folder / name)
        write_bytes(paths[-1], draw())
    return paths


def weight_figures(subject: Subject, image: PreparedImage) -> Iterator[Figure]:
    """Yield the figures of a model's weights: the name of a file, and a function that draws its content, a PNG."""
    match subject.model:
        case ConViT() as model:
            yield from _convit(model, subject, image)
        case CrossViT() as model:
            stages = crossvit_attention(model, image.x)
            yield "crossvit-branches.png", partial(attention.draw_branches, stages, model.grids, subject.name, image)
            yield "crossvit-fusions.png", partial(attention.draw_fusions, stages, model.grids, subject.name, image)
        case MlpMixer() as model:
            yield from _mixer(model, subject)
        case ConvMixer() as model:
            yield _patch_figure(subject)
            filters = depthwise_kernels(model)
            yield "depthwise-kernels.png", partial(kernels.draw_kernels, filters, subject.name)
            yield "depthwise-reach.png", partial(kernels.draw_reach, filters, subject.name)


def _convit(model: ConViT, subject: Subject, image: PreparedImage) -> Iterator[Figure]:
    grid, name = model.patch_embed.grid, subject.name
    position, content = convit_position_attention(model), convit_content_attention(model, image.x)
    if len(position):  # a ConViT may have no gated blocks
        yield "convit-gates.png", partial(attention.draw_gates, convit_gates(model), name)
        draw = partial(attention.draw_head_attention, position, grid)
        yield "convit-position.png", partial(draw, f"Attention by position: {plain(name, 60)}")
        draw = partial(attention.draw_head_attention, content, grid)
        yield "convit-content.png", partial(draw, f"Attention by content: {plain(name, 60)}", image)
    whole = convit_attention(model, image.x)
    yield "convit-non-locality.png", partial(attention.draw_non_locality, whole, position, content, grid, name)
    yield _patch_figure(subject)


def _mixer(model: MlpMixer, subject: Subject) -> Iterator[Figure]:
    mixing, name = token_mixing(model), subject.name
    read = [part.grids[: len(part.grids) - part.gates] for part in mixing]
    if mixing[0].by_position:
        yield "token-mixing-positions.png", partial(kernels.draw_positions, read, name)
        title = "Token mixing, one tile per output patch"
        yield "token-mixing.png", partial(kernels.draw_units, read, title, name, paired=False)
    else:
        title = "Token mixing, patches that hidden units read"
        yield "token-mixing.png", partial(kernels.draw_units, read, title, name, paired=True)
        written = [part.output_grids for part in mixing if part.output_grids is not None]
        title = "Token mixing, patches that hidden units write to"
        yield "token-mixing-outputs.png", partial(kernels.draw_units, written, title, name, paired=True)
    if mixing[0].gates:
        gates = [part.grids[-part.gates :] for part in mixing]
        title = "Token mixing, patches that the gates read"
        yield "token-mixing-gates.png", partial(kernels.draw_units, gates, title, name, paired=True)
    shares = {"token mixing": [sparsity(part.weights) for part in mixing]} | _channel_sparsity(model)
    grids = [part.grids for part in mixing]
    yield "token-mixing-summary.png", partial(kernels.draw_mixing_summary, grids, shares, SPARSITY_THRESHOLD, name)
    yield _patch_figure(subject)


def _channel_sparsity(model: MlpMixer) -> dict[str, list[float]]:
    """Return the sparsity of the channel MLP's layers by block, to compare that of token mixing with."""
    layers = {"channel MLP, first layer": "fc1", "channel MLP, second layer": "fc2"}
    return {
        label: [
            sparsity(block.get_submodule(f"mlp_channels.{layer}").get_parameter("weight").cpu().numpy())
            for block in model.blocks
        ]
        for label, layer in layers.items()
    }


def _patch_figure(subject: Subject) -> Figure:
    draw = partial(kernels.draw_patch_filters, patch_filters(subject.model, subject.spec.std), subject.name)
    return "patch-filters.png", draw


def _subject(model: Subject | Predictor | ImageModel) -> Subject:
    if isinstance(model, Subject):
        return model
    # a Predictor switches its model to evaluation mode
    return Subject(model if isinstance(model, Predictor) else Predictor(copy.deepcopy(model)))


def _prepare(subject: Subject, image: AnyImage | None) -> PreparedImage:
    """Return the image as the model sees it; raises the ImageError of one that cannot be read."""
    if image is None:
        image = (resources.files("tessella.data") / "photographs" / PHOTOGRAPH).read_bytes()
    prepared = [outcome for _, outcome in subject.prepare(image)]
    if len(prepared) != 1:
        raise UsageError("bad_argument", f"got {len(prepared)} images, expected one")
    if isinstance(prepared[0], ImageError):
        raise prepared[0]
    return prepared[0]
