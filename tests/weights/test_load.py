"""Loading a checkpoint into a model: strict except for the requested differences."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from tessella.errors import WeightsError
from tessella.models.base import ImageModel
from tessella.weights.load import MAX_SHOWN, adapt_channels, load_weights

from ..models.tiny import NUM_CLASSES, TINY, images, size_of, tiny
from .test_files import State, state_hash

FIXED_SIZE = [case for case in TINY if not case.startswith("convmixer")]


def head_keys(state: State) -> set[str]:
    return {key for key in state if key.startswith("head.")}


def fresh(case: str, **overrides: Any) -> ImageModel:
    """Return the model of `case` with weights other than the golden ones."""
    model = tiny(case, **overrides)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.125)
    return model


@pytest.mark.parametrize("case", TINY)
def test_the_same_model_gets_the_same_numbers(case: str) -> None:
    source, model = tiny(case), fresh(case)
    load_weights(model, source.state_dict())
    assert state_hash(model) == state_hash(source)


@pytest.mark.parametrize("case", TINY)
@pytest.mark.parametrize("classes", [0, 7])
def test_another_number_of_classes_keeps_only_the_new_head(case: str, classes: int) -> None:
    source, model = tiny(case).state_dict(), fresh(case, num_classes=classes)
    load_weights(model, source, source_cfg={"num_classes": NUM_CLASSES})
    after = model.state_dict()
    assert head_keys(after) == (head_keys(source) if classes else set())
    for key, value in after.items():
        if key.startswith("head."):
            assert torch.all(value == 0.125)
        else:
            assert torch.equal(value, source[key])


@pytest.mark.parametrize("case", TINY)
def test_another_number_of_classes_does_not_allow_other_differences(case: str) -> None:
    source = tiny(case).state_dict()
    victim = next(key for key in source if key.startswith("blocks."))
    for spoil in (
        {key: value for key, value in source.items() if key != victim},
        {**source, "extra": torch.zeros(2)},
        {**source, victim: torch.zeros(3, 3, 3)},
    ):
        model = fresh(case, num_classes=7)
        before = state_hash(model)
        with pytest.raises(WeightsError) as error:
            load_weights(model, spoil, source_cfg={"num_classes": NUM_CLASSES})
        assert error.value.code in ("wrong_keys", "wrong_shape")
        assert state_hash(model) == before


def test_an_unstated_number_of_classes_must_match_the_model() -> None:
    with pytest.raises(WeightsError, match=r"head\.weight") as error:
        load_weights(tiny("mixer", num_classes=7), tiny("mixer").state_dict())
    assert error.value.code == "wrong_shape"


def test_an_unknown_number_of_classes_keeps_the_new_head() -> None:
    model = fresh("mixer")
    load_weights(model, tiny("mixer").state_dict(), source_cfg={"num_classes": -1})
    assert torch.all(model.state_dict()["head.weight"] == 0.125)


@pytest.mark.parametrize("case", ["convmixer", "crossvit"])
def test_a_label_offset_drops_the_leading_classes(case: str) -> None:
    source, model = tiny(case, num_classes=NUM_CLASSES + 1).state_dict(), fresh(case)
    load_weights(model, source, source_cfg={"num_classes": NUM_CLASSES, "label_offset": 1})
    for key in head_keys(source):
        assert torch.equal(model.state_dict()[key], source[key][1:])


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 6])
def test_channels_are_adapted_as_in_timm(channels: int) -> None:
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    adapted = adapt_channels(weight, channels).numpy()
    rgb = weight.numpy()
    if channels == 1:
        np.testing.assert_allclose(adapted[:, 0], rgb[:, 0] + rgb[:, 1] + rgb[:, 2], rtol=1e-6)
    for c in range(channels if channels > 1 else 0):
        np.testing.assert_allclose(adapted[:, c], rgb[:, c % 3] * 3 / channels, rtol=1e-6)


@pytest.mark.parametrize("case", TINY)
def test_a_grey_model_matches_the_colour_model_on_grey_images(case: str) -> None:
    colour, grey = tiny(case), fresh(case, in_chans=1)
    load_weights(grey, colour.state_dict(), source_cfg={"input_size": (3, *size_of(colour))})
    x = images(grey)
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", TINY)
def test_only_the_first_convolutions_change_with_the_channels(case: str) -> None:
    source, model = tiny(case).state_dict(), fresh(case, in_chans=5)
    load_weights(model, source, source_cfg={"input_size": (3, *size_of(model))})
    changed = [key for key, value in model.state_dict().items() if value.shape != source[key].shape]
    assert len(changed) == (2 if case.startswith("crossvit") else 1)
    for key, value in model.state_dict().items():
        expected = adapt_channels(source[key], 5) if key in changed else source[key]
        assert torch.equal(value, expected)


@pytest.mark.parametrize("case", FIXED_SIZE)
def test_another_image_size_is_resampled(case: str) -> None:
    source = tiny(case)
    height, width = size_of(source)
    model = fresh(case, img_size=(2 * height, 3 * width))
    load_weights(model, source.state_dict(), source_cfg={"input_size": (3, height, width)})
    expected = model.resample_state_dict(source.state_dict(), (height, width))
    changed = 0
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key])
        changed += value.shape != source.state_dict()[key].shape
    assert changed


@pytest.mark.parametrize("case", FIXED_SIZE)
def test_another_unstated_image_size_is_an_error(case: str) -> None:
    source = tiny(case)
    height, width = size_of(source)
    model = fresh(case, img_size=(2 * height, 2 * width))
    before = state_hash(model)
    for cfg in ({}, {"input_size": (3, 2 * height, 3 * width)}):
        with pytest.raises(WeightsError) as error:
            load_weights(model, source.state_dict(), source_cfg=cfg)
        assert error.value.code == "wrong_shape"
        assert state_hash(model) == before


def test_an_image_size_that_the_model_does_not_support_is_a_bad_config() -> None:
    with pytest.raises(WeightsError) as error:
        load_weights(tiny("mixer"), tiny("mixer").state_dict(), source_cfg={"input_size": (3, 33, 33)})
    assert error.value.code == "bad_config"


def test_classes_channels_and_image_size_change_at_once() -> None:
    source = tiny("crossvit_dagger")
    model = fresh("crossvit_dagger", num_classes=2, in_chans=1, img_size=240)
    load_weights(model, source.state_dict(), source_cfg={"num_classes": NUM_CLASSES, "input_size": (3, 120, 120)})
    assert model(images(model)).shape == (2, 2)


def test_a_single_difference_is_not_a_plural() -> None:
    source = dict(tiny("convmixer").state_dict())
    source["head.bias"] = torch.zeros(9)
    with pytest.raises(WeightsError, match="convmixer_1024_20_ks9_p14: 1 difference, "):
        load_weights(tiny("convmixer"), source, source="my.safetensors")


def test_the_first_differences_are_shown_with_both_sides() -> None:
    source = dict(tiny("convmixer").state_dict())
    for key in list(source)[:6]:
        source[f"other.{key}"] = source.pop(key)
    source["head.bias"] = torch.zeros(9)
    with pytest.raises(WeightsError) as error:
        load_weights(tiny("convmixer"), source, source="my.safetensors")
    message = error.value.message
    assert "my.safetensors is not convmixer_1024_20_ks9_p14: 13 differences" in message
    assert "\n- stem.0.weight (16, 3, 4, 4)" in message
    assert "\n+ other.stem.0.weight (16, 3, 4, 4)" in message
    assert len(message.splitlines()) == 1 + MAX_SHOWN
    assert error.value.code == "wrong_keys"

    source = {**tiny("convmixer").state_dict(), "head.bias": torch.zeros(9)}
    with pytest.raises(WeightsError) as error:
        load_weights(tiny("convmixer"), source)
    assert error.value.message.endswith(f"\n  head.bias: model ({NUM_CLASSES}), file (9)")


@pytest.mark.parametrize(
    ("case", "keys"),
    [
        ("convmixer", ["0.weight", "3.0.fn.0.weight"]),
        ("crossvit", ["pos_embed.0", "cls_token.1"]),
        ("resmlp", ["patch_embed.proj.weight", "blocks.0.gamma_1"]),
        ("resmlp", ["blocks.0.attn.weight"]),
    ],
)
def test_the_hint_for_original_files_is_to_convert_them(case: str, keys: list[str]) -> None:
    with pytest.raises(WeightsError) as error:
        load_weights(tiny(case), dict.fromkeys(keys, torch.zeros(1)))
    assert "tessella convert" in error.value.hint
    with pytest.raises(WeightsError) as error:
        load_weights(tiny(case), {"backbone.weight": torch.zeros(1)})
    assert "tessella convert" not in error.value.hint


def test_half_precision_is_converted_exactly(caplog: pytest.LogCaptureFixture) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        source = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tiny("mixer").state_dict().items()}
        model = fresh("mixer")
        load_weights(model, source)
        for key, value in model.state_dict().items():
            assert value.dtype == torch.float32
            assert torch.equal(value, source[key].float())
    assert not caplog.records


def test_rounding_of_double_precision_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    source, model = tiny("mixer"), fresh("mixer")
    with caplog.at_level(logging.WARNING):
        load_weights(model, tiny("mixer").double().state_dict())
    assert "float64" in caplog.text
    assert state_hash(model) == state_hash(source)


def test_numbers_that_overflow_the_models_precision_are_refused() -> None:
    source = tiny("mixer").state_dict()
    source["head.bias"][0] = 1e6
    model = tiny("mixer").half()
    with pytest.raises(WeightsError) as error:
        load_weights(model, source)
    assert error.value.code == "non_finite"
    assert torch.equal(model.state_dict()["head.bias"], tiny("mixer").half().state_dict()["head.bias"])


def test_a_state_dict_in_memory_is_also_checked() -> None:
    source = tiny("mixer").state_dict()
    source["norm.weight"][2] = float("nan")
    with pytest.raises(WeightsError, match=r"norm\.weight"):
        load_weights(tiny("mixer"), source)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_state_with_floating_point_batch_counters_is_accepted(dtype: torch.dtype) -> None:
    source = {key: value.to(dtype) for key, value in tiny("convmixer").state_dict().items()}
    model = fresh("convmixer")
    load_weights(model, source)
    assert model.state_dict()["stem.2.num_batches_tracked"].dtype == torch.int64


def test_integer_weights_are_refused() -> None:
    source = tiny("convmixer").state_dict()
    source["stem.0.weight"] = source["stem.0.weight"].int()
    with pytest.raises(WeightsError) as error:
        load_weights(tiny("convmixer"), source)
    assert error.value.code == "wrong_dtype"


def test_the_state_dict_of_the_caller_is_not_changed() -> None:
    source = tiny("crossvit").state_dict()
    copies = {key: value.clone() for key, value in source.items()}
    model = tiny("crossvit", in_chans=1, num_classes=2, img_size=240)
    load_weights(model, source, source_cfg={"num_classes": NUM_CLASSES, "input_size": (3, 120, 120)})
    assert all(torch.equal(source[key], value) for key, value in copies.items())
    assert source.keys() == copies.keys()
