"""Convert the original authors' weight files to a folder in timm's layout.

A layout is recognized by its keys and defined by rules for keys and axes; no number is changed. All keys and shapes of
the result are compared with those of the model before anything is written.
"""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError, WeightsError
from ..models import ARCHITECTURES, build
from ..models.base import ImageModel
from ..storage import open_regular
from .fetch import SAFETENSORS
from .files import check_finite, read_state_dict, without_prefix
from .load import load_weights
from .save import save_pretrained

_log = logging.getLogger(__name__)

State = dict[str, Tensor]


@dataclass(frozen=True)
class Converted:
    """The result of a conversion. folder: the written model; layout: a description of the original file."""

    folder: Path
    arch: str
    layout: str


def convert(
    source: str | Path, arch: str | None = None, out: str | Path | None = None, **model_args: object
) -> Converted:
    """Convert a .pth, .pth.tar, .safetensors or .npz file to model.safetensors, config.json and README.md.

    arch: required only if the shapes fit more than one architecture. out: a new folder (None: the name of the
    architecture in the current folder). model_args: fields that differ from the architecture's config; num_classes is
    read from the file. Raises UsageError (bad_argument, unknown_model), OutputError `output_failed`, and WeightsError:
    wrong_keys for an unknown layout, and the errors of `read_state_dict`, `load_weights` and `save_pretrained`.
    """
    source = Path(source)
    original = _read_npz(source) if source.suffix.lower() == ".npz" else read_state_dict(source)
    original = without_prefix(original, {layout.marker for layout in LAYOUTS}, source)
    layout = find_layout(original, source)
    state = layout.translate(original)
    heads = [value for key, value in state.items() if re.fullmatch(r"head\.(\d+\.)?weight", key)]
    classes = {value.shape[0] for value in heads if value.ndim}
    if len(classes) == 1:
        model_args = {"num_classes": classes.pop(), **model_args}
    arch = arch or infer_arch(state, layout, source, model_args)
    _log.info("%s: %s, read as %s", source, layout.name, arch)
    folder = Path(out or arch)
    if (folder / SAFETENSORS).exists():
        raise UsageError(
            "bad_argument", f"{folder} already contains a model", hint="give another output folder (--out)"
        )
    model = build(arch, **model_args)
    load_weights(model, state, source=source)
    return Converted(save_pretrained(model, folder), arch, layout.name)


# --- layouts ---


def _convmixer(state: State) -> State:
    """Translate an nn.Sequential: convolution 0, activation 1, norm 2, the blocks, pooling, flattening, head."""
    last = max(int(key.partition(".")[0]) for key in state if key[:1].isdecimal())

    def rename(match: re.Match[str]) -> str:
        index = int(match[1])
        return f"stem.{index}." if index < 3 else "head." if index == last else f"blocks.{index - 3}."

    return {re.sub(r"^(\d+)\.", rename, key): value for key, value in state.items()}


def _crossvit(state: State) -> State:
    """Translate ParameterLists, whose entries are separate parameters in timm."""
    return {re.sub(r"^(pos_embed|cls_token)\.", r"\1_", key): value for key, value in state.items()}


def _resmlp(state: State) -> State:
    renamed = {_sub(_RESMLP, key): value for key, value in state.items()}
    affine = (".alpha", ".beta")
    return {key: value.reshape(1, 1, -1) if key.endswith(affine) else value for key, value in renamed.items()}


def _mixer(state: State) -> State:
    """Translate JAX arrays: dense kernels are (in, out), that of the stem is (height, width, in, out)."""
    # before the linen library, modules of all classes were numbered together: the norms are 0 and 1, or 0 and 2
    norms = sorted({int(n) for key in state for n in re.findall(r"/LayerNorm_(\d+)/", key)})
    rules = [*_MIXER, *((f"LayerNorm_{n}/", f"norm{i}.") for i, n in enumerate(norms, start=1)), *_LEAVES]
    translated = {}
    for key, value in state.items():
        if "_mixing_phase_0/" in key:
            value = value.squeeze()  # removes a leading axis of size one
        if re.search(r"kernel\d?$", key):
            value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T
        translated[_sub(rules, key)] = value.contiguous()
    return translated


def _sub(rules: list[tuple[str, str]], key: str) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


_RESMLP = [
    (r"^patch_embed\.", "stem."),
    (r"\.attn\.", ".linear_tokens."),
    (r"\.mlp\.", ".mlp_channels."),
    (r"\.gamma_", ".ls"),
]
_MIXER = [
    # before linen -> linen
    (r"^embedding/", "stem/"),
    (r"^Mixer/encoder_norm/", "pre_head_layer_norm/"),
    (r"^Mixer/encoderblock_", "MixerBlock_"),
    (r"_mixing_phase_0/(kernel|bias)1$", r"_mixing/Dense_0/\1"),
    (r"_mixing_phase_0/(kernel|bias)2$", r"_mixing/Dense_1/\1"),
    # linen -> timm
    (r"^stem/", "stem.proj."),
    (r"^MixerBlock_(\d+)/", r"blocks.\1."),
    (r"token_mixing/", "mlp_tokens."),
    (r"channel_mixing/", "mlp_channels."),
    (r"Dense_0/", "fc1."),
    (r"Dense_1/", "fc2."),
    (r"^pre_head_layer_norm/", "norm."),
    (r"^head/", "head."),
]
_LEAVES = [(r"(kernel|scale)$", "weight")]


@dataclass(frozen=True)
class Layout:
    """A layout of weight files.

    marker: a key that all files of this layout have and no others. families: prefixes of its architectures' names.
    translate: returns the weights with timm's keys and axes.
    """

    name: str
    marker: str
    families: tuple[str, ...]
    translate: Callable[[State], State]


LAYOUTS = (
    Layout("the ConvMixer authors' nn.Sequential", "3.0.fn.0.weight", ("convmixer_",), _convmixer),
    Layout("the CrossViT authors' ParameterLists", "pos_embed.0", ("crossvit_",), _crossvit),
    Layout("the ResMLP authors' names", "blocks.0.gamma_1", ("resmlp_",), _resmlp),
    Layout("MLP-Mixer's JAX tree", "MixerBlock_0/token_mixing/Dense_0/kernel", ("mixer_",), _mixer),
    Layout(
        "MLP-Mixer's JAX tree from before linen",
        "Mixer/encoderblock_0/token_mixing_phase_0/kernel1",
        ("mixer_",),
        _mixer,
    ),
    Layout("the ConViT authors' names, which are timm's", "blocks.0.attn.gating_param", ("convit_",), dict),
    Layout("timm's names", "stem.0.weight", ("convmixer_",), dict),
    Layout("timm's names", "pos_embed_0", ("crossvit_",), dict),
    Layout("timm's names", "blocks.0.mlp_tokens.fc1.weight", ("mixer_", "gmixer_"), dict),
    Layout("timm's names", "blocks.0.linear_tokens.weight", ("resmlp_",), dict),
    Layout("timm's names", "blocks.0.mlp_channels.gate.proj.weight", ("gmlp_",), dict),
)


def find_layout(state: Mapping[str, Tensor], source: object) -> Layout:
    """Return the layout of a state dict; raises WeightsError `wrong_keys` if it is not one of `LAYOUTS`."""
    for layout in LAYOUTS:
        if layout.marker in state:
            return layout
    raise WeightsError(
        "wrong_keys",
        f"{source} has an unknown layout, its keys are {', '.join(list(state)[:5])}, ...",
        hint=f"known: {'; '.join(dict.fromkeys(layout.name for layout in LAYOUTS))}",
    )


def infer_arch(state: State, layout: Layout, source: object, model_args: Mapping[str, object]) -> str:
    """Return the only architecture of the layout with these keys and shapes; raises UsageError `bad_argument`."""
    shapes = {key: value.shape for key, value in state.items()}
    names = [name for name in ARCHITECTURES if name.startswith(layout.families)]
    fitting = [name for name in names if shapes == _shapes(name, model_args)]
    if len(fitting) == 1:
        return fitting[0]
    raise UsageError(
        "bad_argument",
        f"{source}: its shapes fit {'more than one architecture' if fitting else 'none of the architectures'} "
        f"{', '.join(fitting or names)}",
        hint="give one of them with --arch (arch=)"
        if fitting
        else "give the most similar one with --arch (arch=) to see the differences",
    )


def _shapes(arch: str, model_args: Mapping[str, object]) -> dict[str, torch.Size] | None:
    """Return the shapes of the architecture with these arguments; None if it does not accept them."""
    try:
        with torch.device("meta"):
            model: ImageModel = build(arch, **model_args)
    except UsageError:
        return None
    return {key: value.shape for key, value in model.state_dict().items()}


def _read_npz(path: Path) -> State:
    """Read an .npz archive as `read_state_dict` does: arrays of finite numbers as tensors, never objects."""
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as archive:
            state = {key: torch.from_numpy(archive[key]) for key in archive.files}
    except FileNotFoundError as err:
        raise WeightsError("weights_not_found", f"{path} does not exist") from err
    except (OSError, EOFError, ValueError, TypeError, MemoryError, zipfile.BadZipFile) as err:
        raise WeightsError(
            "bad_format", f"{path} is not an .npz archive of plain numbers: {type(err).__name__}", hint="copy it again"
        ) from err
    check_finite(state.items(), path)
    return state
