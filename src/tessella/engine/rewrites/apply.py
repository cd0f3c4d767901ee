"""Apply the rewrites of a model's family to a copy of the model."""

from __future__ import annotations

import copy
from collections.abc import Collection

from ...data.spec import InputSpec
from ...errors import UsageError
from ...models.base import ImageModel
from .base import Family, Model, Rewritten
from .convit import ConViTFamily
from .convmixer import ConvMixerFamily
from .crossvit import CrossViTFamily
from .mixer import MlpMixerFamily

FAMILIES = (ConvMixerFamily(), ConViTFamily(), MlpMixerFamily(), CrossViTFamily())


def rewrite(
    model: Model, *, only: Collection[str] | None = None, spec: InputSpec | None = None, layout: str = ""
) -> Rewritten:
    """Return an equivalent of `model` for inference, with a copy of the weights; `model` does not change.

    only: names from `rewrites_of(model)`; None applies all. spec: how the pixels are normalized; with it, the result
    reads uint8 images (B,C,H,W), best in channels-last memory, instead of normalized ones. layout: one of
    `layouts_of(model)`; "" uses the first. Raises UsageError `bad_argument` for unknown names.
    """
    family = family_of(model)
    known = family.names(model)
    layouts = family.layouts(model)
    if layout and layout not in layouts:
        raise UsageError("bad_argument", f"layout is {layout!r}", hint=f"known: {', '.join(layouts) or 'none'}")
    layout = layout or (layouts[0] if layouts else "")
    if unknown := set(only or ()) - set(known):
        raise UsageError(
            "bad_argument", f"there is no rewrite {', '.join(sorted(unknown))}", hint=f"known: {', '.join(known)}"
        )
    device = next(model.parameters()).device
    # weights are folded on the CPU, as not every device supports float64
    net = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    skipped = family.skipped_by.get(layout)
    names = [name for name in known if (name in only if only is not None else name != skipped)]
    for name in names:
        if name in family.steps:
            family.steps[name](net, layout)
    if spec is not None:
        family.fold_pixels(net, spec)
        names.append("pixels")
    family.finish(net, layout)
    rewritten = family.final if family.final.rewrite in names else Rewritten
    return rewritten(net, tuple(names)).to(device)


def rewrites_of(model: ImageModel) -> tuple[str, ...]:
    """Return the names of the rewrites that apply to `model`, in the order in which they are applied."""
    return family_of(model).names(model)


def layouts_of(model: ImageModel) -> tuple[str, ...]:
    """Return the names of equivalent layouts whose speed depends on the backend, the default first."""
    return family_of(model).layouts(model)


def usual_layout(model: ImageModel, engine: str) -> str:
    """Return the default layout of `engine`; "" for a family with one layout."""
    layouts = layouts_of(model)
    preferred = family_of(model).engine_layouts.get(engine, "")
    return preferred if preferred in layouts else next(iter(layouts), "")


def family_of(model: Model) -> Family[Model]:
    """Return the rewrites of the model's family; raises UsageError `bad_argument` for other modules."""
    for family in FAMILIES:
        if isinstance(model, family.model_type):
            return family  # type: ignore[return-value]  # isinstance has checked the type of its models
    raise UsageError("bad_argument", f"{type(model).__name__} has no rewrites", hint="pass a model of create_model")
