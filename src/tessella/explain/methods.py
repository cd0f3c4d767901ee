"""The attribution methods by name, which of them apply to a model, and which is the best for its family."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..errors import UsageError
from ..extras import is_installed
from ..models.base import ImageModel
from ..models.convit import ConViT
from ..models.crossvit import CrossViT
from ..text import any_of
from .attention import attention_map
from .grad_cam import grad_cam
from .ledger import exact_map, ledger_problem
from .maps import AttributionMap
from .perturbation import integrated_gradients, occlusion
from .subject import PreparedImage, Subject, family_of

METHODS = ("exact", "grad-cam", "attention", "integrated-gradients", "occlusion")
WITH_CAPTUM = ("integrated-gradients", "occlusion")  # the extra `explain` installs it

# Best first, by deletion and insertion on the built-in models; the single-deletion correlation does not count, because
# occlusion measures the same. ResMLP and gMLP, which have no built-in model, are ranked as the other mixers.
POOLED = ("integrated-gradients", "occlusion", "grad-cam", "exact")
RANKING: Mapping[str, tuple[str, ...]] = {
    "convmixer": POOLED,
    "mixer": POOLED,
    "gmixer": POOLED,
    "resmlp": POOLED,
    "gmlp": POOLED,
    "convit": ("integrated-gradients", "occlusion", "grad-cam", "attention", "exact"),
    "crossvit": ("integrated-gradients", "occlusion", "attention", "grad-cam"),
}


def methods_for(model: ImageModel) -> tuple[str, ...]:
    """Return the methods that apply to a model, in the order of METHODS, whether or not their packages are installed.

    A model without a classifier has none.
    """
    return tuple(method for method in METHODS if method_problem(model, method) is None)


def method_problem(model: ImageModel, method: str) -> str | None:
    """Return why a method does not apply to a model, as a sentence, or None if it does.

    Raises UsageError `bad_argument` for an unknown method.
    """
    if method not in METHODS:
        raise UsageError("bad_argument", f"there is no method {method!r}", hint=f"methods: {any_of(METHODS)}")
    if not model.num_classes or model.global_pool == "":
        return "the model does not give one row of logits per image, so there is no class to explain"
    if method == "exact":
        return ledger_problem(model)
    if method == "attention" and not isinstance(model, ConViT | CrossViT):
        return f"{type(model).__name__} has no attention"
    return None


def choose_method(model: ImageModel) -> str:
    """Return the best method of RANKING that applies to a model and whose package is installed.

    Raises UsageError `bad_argument` for a model without a classifier.
    """
    ranking = [method for method in RANKING[family_of(model)] if method_problem(model, method) is None]
    if not ranking:
        raise UsageError("bad_argument", str(method_problem(model, METHODS[0])))
    return next(method for method in ranking if method not in WITH_CAPTUM or is_installed("captum"))


def suggest_method(model: ImageModel) -> str:
    """Return a hint for a method that does not apply to a model: the best one that does, and the others.

    Raises UsageError `bad_argument` for a model without a classifier.
    """
    best = choose_method(model)
    others = any_of([method for method in methods_for(model) if method != best])
    return f"the next best method is {best}, which 'auto' chooses; others: {others}"


def attribute(
    subject: Subject, image: PreparedImage, target: int, method: str, *, versus: int | None = None, seed: int = 0
) -> AttributionMap:
    """Compute how much each position of an image adds to the score of a class.

    target: index of the class. method: one of METHODS, or "auto" for `choose_method`. versus: explain the difference to
    the logit of this class instead. seed: for methods with random numbers; none of these has any. The shape of the
    values depends on the method: the grid of patches, or one value per pixel for integrated gradients.
    Raises UsageError `bad_argument` for unknown classes and methods, and for methods that do not apply to the model;
    `missing_dependency` for a method whose package is not installed.
    """
    return map_image(subject.model, image.x, target, method, versus)


def map_image(
    model: ImageModel, x_1CHW: Tensor, target: int, method: str = "auto", versus: int | None = None
) -> AttributionMap:
    """Do what `attribute` does, for a model in evaluation mode and one normalized image (1,C,H,W).

    Raises UsageError as `attribute`.
    """
    if method == "auto":
        method = choose_method(model)
    if problem := method_problem(model, method):
        raise UsageError("bad_argument", problem, hint=suggest_method(model))
    compute = {
        "exact": exact_map,
        "grad-cam": grad_cam,
        "attention": attention_map,
        "integrated-gradients": integrated_gradients,
        "occlusion": occlusion,
    }[method]
    return compute(model, x_1CHW, target, versus)
