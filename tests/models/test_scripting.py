"""TorchScript and torch.fx accept every family, as they accept timm's models, with the same outputs."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessella.errors import UsageError
from tessella.models import ARCHITECTURES, build
from tessella.models.features import FeatureExtractor

from .tiny import TINY, images, tiny

PUBLISHED = (
    "convmixer_768_32",
    "convit_tiny",
    "mixer_s32_224",
    "gmixer_12_224",
    "resmlp_12_224",
    "gmlp_ti16_224",
    "crossvit_9_240",
    "crossvit_9_dagger_240",
    "convmixer_256_8_ks3_p4",
)


@pytest.fixture(autouse=True)
def setting() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for such small models, waking a second thread takes longer than the computation
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit")
        yield
    torch.set_num_threads(threads)


def script(model: nn.Module) -> Any:
    return torch.jit.script(model)


def close(actual: Tensor, expected: Tensor) -> bool:
    """TorchScript fuses some operations, which changes the last bits."""
    return torch.allclose(actual, expected, rtol=1e-5, atol=1e-5)


def as_list(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, list | tuple) else [value]


@pytest.mark.parametrize("case", TINY)
def test_a_scripted_model_gives_the_same_outputs_after_saving(case: str) -> None:
    model = tiny(case)
    x = images(model)
    buffer = io.BytesIO()
    torch.jit.save(script(model), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    assert close(scripted(x), model(x))
    features, expected = scripted.forward_features(x), model.forward_features(x)
    for ours, theirs in zip(as_list(features), as_list(expected), strict=True):
        assert close(ours, theirs)
    assert close(scripted.forward_head(features, True), model.forward_head(expected, pre_logits=True))


@pytest.mark.parametrize("case", TINY)
def test_a_traced_graph_gives_the_same_outputs(case: str) -> None:
    model = tiny(case)
    graph = torch.fx.symbolic_trace(model)
    for batch in (1, 3):
        assert torch.equal(graph(images(model, batch)), model(images(model, batch)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    """Two blocks or stages are enough: all blocks of the published models are of the same kinds."""
    config = ARCHITECTURES[name][1]
    small: dict[str, Any] = {"num_blocks": 2} if hasattr(config, "num_blocks") else {"depth": 2}
    if "convit" in name:
        small["local_up_to_layer"] = 1
    if "crossvit" in name:
        small = {"depth": config.depth[:1]}
    model = build(name, **small).eval()
    x = images(model, 1)
    expected = model(x)
    assert close(script(model)(x), expected)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), expected)


@pytest.mark.parametrize("case", TINY)
def test_every_pool_and_no_head(case: str) -> None:
    default = tiny(case)
    pools = {
        "ConvMixer": ("avg", "max", "avgmax", "catavgmax", "fast", "fastmax", "fastcatavgmax", ""),
        "ConViT": ("token", "avg", ""),
        "MlpMixer": ("avg", ""),
        "CrossViT": ("token", "avg"),
    }
    variants: list[dict[str, Any]] = [dict(global_pool=pool) for pool in pools[type(default).__name__][1:]]
    for changed in ({"num_classes": 0}, *variants):
        model = tiny(case, **changed)
        x = images(model)
        assert close(script(model)(x), model(x))
        assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


@pytest.mark.parametrize("case", TINY)
def test_training_mode_with_every_dropout_rate(case: str) -> None:
    """The random numbers are drawn in the same order, so the same seed gives the same outputs."""
    rates = dict(drop_rate=0.2, drop_path_rate=0.5)
    if not case.startswith("convmixer"):
        rates |= dict(proj_drop_rate=0.2)
    model = tiny(case, **rates).train()
    x = images(model, 4)
    scripted, graph = script(model), torch.fx.symbolic_trace(model)
    results = []
    for variant in (model, scripted, graph):
        torch.manual_seed(5)
        with torch.enable_grad():
            results.append(variant(x))
    assert results[0].requires_grad
    for other in results[1:]:
        assert close(other, results[0])
    scripted.eval()
    model.eval()
    assert close(scripted(x), model(x))


@pytest.mark.parametrize("case", ["convit", "mixer", "crossvit", "convmixer"])
def test_scripted_models_skip_gradient_checkpointing(case: str) -> None:
    model = tiny(case)
    model.set_grad_checkpointing()
    assert close(script(model)(images(model)), model(images(model)))


@pytest.mark.parametrize("case", TINY)
def test_scripted_and_traced_models_refuse_a_wrong_size(case: str) -> None:
    model = tiny(case)
    wrong = torch.zeros(1, 3, 2, 2)
    with pytest.raises(torch.jit.Error, match="2x2 px images"):
        script(model)(wrong)
    with pytest.raises(UsageError, match="2x2 px images"):
        torch.fx.symbolic_trace(model)(wrong)


@pytest.mark.parametrize("case", TINY)
def test_feature_extractors_are_traceable(case: str) -> None:
    extractor = FeatureExtractor(tiny(case)).eval()
    x = images(tiny(case))
    for ours, theirs in zip(torch.fx.symbolic_trace(extractor)(x), extractor(x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("case", ["crossvit", "crossvit_dagger"])
@pytest.mark.parametrize("img_size", [120, (120, 240)])
def test_crossvit_that_crops_instead_of_resizing(case: str, img_size: Any) -> None:
    model = tiny(case, crop_scale=True, img_size=img_size)
    x = images(model)
    assert close(script(model)(x), model(x))
