"""Tests of the contract of every family (`ImageModel`) with a small model of each."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tessella.errors import UsageError
from tessella.fingerprint import config_text
from tessella.models import ARCHITECTURES, build
from tessella.models.base import ImageModel
from tessella.models.convmixer import POOLS as CONVMIXER_POOLS
from tessella.models.features import FeatureExtractor

from .tiny import NUM_CLASSES, TINY, fields_of, images, size_of, tiny

POOLS = {
    "ConvMixer": CONVMIXER_POOLS,
    "ConViT": ("token", "avg", ""),
    "MlpMixer": ("avg", ""),
    "CrossViT": ("token", "avg"),
}
ANY_SIZE = {"convmixer", "convmixer_relu"}
FIXED_SIZE = [case for case in TINY if case not in ANY_SIZE]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: for such small models, waking a second one takes longer than the computation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=TINY)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


def as_list(features: Any) -> list[Tensor]:
    """Return the features as a list: CrossViT has one tensor per branch, the other families have one."""
    return features if isinstance(features, list) else [features]


def assert_same(a: Any, b: Any) -> None:
    """Return whether two outputs are equal bit for bit."""
    assert len(as_list(a)) == len(as_list(b))
    for left, right in zip(as_list(a), as_list(b), strict=True):
        assert torch.equal(left, right)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return all tensors and simple attributes of all modules."""
    attributes: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers"):
                attributes |= {f"{name}.{k}": (id(v), None if v is None else v.clone()) for k, v in value.items()}
            else:
                attributes[f"{name}:{key}"] = repr(value)
    return attributes


def assert_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for key, value in before.items():
        if isinstance(value, tuple) and value[1] is not None:
            assert value[0] == after[key][0], f"{key} is another tensor"
            assert torch.equal(value[1], after[key][1]), key
        else:
            assert value == after[key], key


# --- forward and head -------------------------------------------------------------------------------------------------


def test_every_family_is_tested() -> None:
    assert {type(tiny(case)) for case in TINY} == {family for family, _ in ARCHITECTURES.values()}
    kinds = {config.kind for _, config in ARCHITECTURES.values() if hasattr(config, "kind")}
    assert kinds == {tiny(case).config.kind for case in TINY if hasattr(tiny(case).config, "kind")}


def test_forward_is_the_head_of_the_features(case: str) -> None:
    model = tiny(case)
    x = images(model)
    features = model.forward_features(x)
    assert_same(model(x), model.forward_head(features))
    assert model(x).shape == (2, NUM_CLASSES)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    assert model.head_hidden_size == model.num_features


def test_the_outputs_for_an_image_do_not_depend_on_the_batch(case: str) -> None:
    model = tiny(case)
    x = images(model, batch=3)
    assert torch.allclose(model(x)[1:2], model(x[1:2]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("in_chans", [1, 4])
def test_in_chans(case: str, in_chans: int) -> None:
    model = tiny(case, in_chans=in_chans)
    assert model(images(model)).shape == (2, NUM_CLASSES)


def test_no_classes_gives_the_embedding(case: str) -> None:
    model, headed = tiny(case, num_classes=0), tiny(case)
    x = images(model)
    assert_same(model(x), headed.forward_head(headed.forward_features(x), pre_logits=True))
    assert not list(model.get_classifier().parameters())


def test_reset_classifier(case: str) -> None:
    model = tiny(case).to(torch.float64)
    x = images(model).double()
    embedding = model.forward_head(model.forward_features(x), pre_logits=True)
    for classes in (3, 7):
        model.reset_classifier(classes)
        assert model.num_classes == classes
        assert model(x).shape == (2, classes)
        assert {p.dtype for p in model.get_classifier().parameters()} == {torch.float64}
        assert not any(module.training for module in model.modules())
    model.reset_classifier(0)
    assert_same(model(x), embedding)
    model.reset_classifier(4)
    assert model(x).shape == (2, 4)


def test_global_pool(case: str) -> None:
    default = tiny(case)
    pools = POOLS[type(default).__name__]
    features = default.forward_features(images(default))
    embeddings = {}
    for pool in pools:
        built = tiny(case, global_pool=pool)
        changed = tiny(case)
        changed.reset_classifier(NUM_CLASSES, pool)
        embeddings[pool] = built.forward_head(features, pre_logits=True)
        assert_same(embeddings[pool], changed.forward_head(features, pre_logits=True))
        assert built.forward_head(features).shape == changed.forward_head(features).shape
        if pool:
            assert embeddings[pool].shape == (2, built.head_hidden_size)
            assert built.forward_head(features).shape == (2, NUM_CLASSES)
    if "" in pools:
        assert_same(embeddings[""], features)
    if "token" in pools:
        assert_same(embeddings["token"], torch.cat([part[:, 0] for part in as_list(features)], dim=1))
    prefix = 1 if "token" in pools else 0
    patches = [part.flatten(2).mT if part.ndim == 4 else part[:, prefix:] for part in as_list(features)]
    average = torch.cat([part.mean(dim=1) for part in patches], dim=1)
    assert torch.allclose(embeddings["avg"], average, atol=1e-6)
    if "max" in pools:
        largest = torch.cat([part.amax(dim=1) for part in patches], dim=1)
        assert_same(embeddings["max"], largest)
        assert torch.allclose(embeddings["avgmax"], (average + largest) / 2, atol=1e-6)
        assert torch.allclose(embeddings["catavgmax"], torch.cat((average, largest), dim=1), atol=1e-6)
        for kind in ("avg", "max", "avgmax", "catavgmax"):
            assert_same(embeddings[f"fast{kind}"], embeddings[kind])


def test_unknown_pool(case: str) -> None:
    model = tiny(case)
    for attempt in (lambda: tiny(case, global_pool="median"), lambda: model.reset_classifier(3, "median")):
        with pytest.raises(UsageError) as caught:
            attempt()
        assert caught.value.code == "bad_argument"
        assert "'median'" in str(caught.value)
        assert "'avg'" in str(caught.value)


# --- intermediates ----------------------------------------------------------------------------------------------------


def test_intermediates_are_maps_of_every_block(case: str) -> None:
    model = tiny(case)
    x = images(model)
    final, outputs = model.forward_intermediates(x)
    assert_same(final, model.forward_features(x))
    assert len(outputs) == len(model.feature_info)
    for output, info in zip(outputs, model.feature_info, strict=True):
        side = size_of(model)[0] // info["reduction"]
        assert output.shape == (2, info["num_chs"], side, side)
        assert output.is_contiguous()
    assert_same(model.forward_intermediates(x, intermediates_only=True), outputs)


def test_selected_intermediates(case: str) -> None:
    model = tiny(case)
    x = images(model)
    every = model.forward_intermediates(x, intermediates_only=True)
    count = len(every)
    for indices, expected in (
        (1, every[-1:]),
        (2, every[-2:]),
        ([0], every[:1]),
        ([-1], every[-1:]),
        ([0, -1], [every[0], every[-1]]),
        ((count - 1,), every[-1:]),
    ):
        assert_same(model.forward_intermediates(x, indices=indices, intermediates_only=True), expected)


@pytest.mark.parametrize("indices", [0, 99, [99], [-99], []])
def test_unknown_intermediates_are_refused(case: str, indices: Any) -> None:
    model = tiny(case)
    for attempt in (
        lambda: model.forward_intermediates(images(model), indices=indices),
        lambda: model.prune_intermediate_layers(indices),
    ):
        with pytest.raises(UsageError) as caught:
            attempt()
        assert caught.value.code == "bad_argument"
        assert repr(indices) in str(caught.value)


def test_stop_early_skips_the_blocks_after_the_last_selected_one(case: str) -> None:
    model = tiny(case)
    x = images(model)
    expected = model.forward_intermediates(x, indices=[0], intermediates_only=True)
    last = model.get_submodule(model.feature_info[-1]["module"])
    calls: list[str] = []
    last.register_forward_hook(lambda *_: calls.append("last"))
    assert_same(model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True), expected)
    assert not calls
    final, outputs = model.forward_intermediates(x, indices=[0], stop_early=False)
    assert_same(outputs, expected)
    assert_same(final, model.forward_features(x))
    assert calls


def test_intermediates_as_tokens_and_normed(case: str) -> None:
    model = tiny(case)
    x = images(model)
    if type(model).__name__ == "ConvMixer":  # has no tokens and no final norm
        with pytest.raises(UsageError) as caught:
            model.forward_intermediates(x, output_fmt="NLC")
        assert caught.value.code == "bad_argument"
        assert_same(
            model.forward_intermediates(x, norm=True, intermediates_only=True),
            model.forward_intermediates(x, intermediates_only=True),
        )
        return
    for norm in (False, True):
        maps = model.forward_intermediates(x, norm=norm, intermediates_only=True)
        tokens = model.forward_intermediates(x, norm=norm, output_fmt="NLC", intermediates_only=True)
        assert_same([part.flatten(2).mT for part in maps], tokens)
    features = as_list(model.forward_features(x))
    picked = [tokens[i] for i in ((-1,) if len(features) == 1 else model.default_out_indices)]
    assert_same(picked, [part[:, -last.shape[1] :] for part, last in zip(features, picked, strict=True)])


def test_a_pruned_model_has_other_default_maps(case: str) -> None:
    model = tiny(case)
    model.prune_intermediate_layers([0], prune_head=False)
    maps = model.forward_intermediates(images(model), indices=model.default_out_indices, intermediates_only=True)
    assert len(maps) == len(model.feature_info)


def test_numpy_numbers_are_accepted(case: str) -> None:
    model = tiny(case, num_classes=np.int64(3), drop_rate=np.float64(0.25))
    expected = tiny(case, num_classes=3, drop_rate=0.25)
    assert config_text(model.config) == config_text(expected.config)
    model.reset_classifier(np.int64(4))
    assert type(model.num_classes) is int
    assert model(images(model)).shape[1] == 4


def test_unknown_output_format(case: str) -> None:
    model = tiny(case)
    with pytest.raises(UsageError) as caught:
        model.forward_intermediates(images(model), output_fmt="NHWC")
    assert caught.value.code == "bad_argument"
    assert "'NHWC'" in str(caught.value)


@pytest.mark.parametrize("out_indices", [None, 1, [0], (-1, 0)])
@pytest.mark.parametrize("norm", [False, True])
def test_features_only(case: str, out_indices: Any, norm: bool) -> None:
    model, complete = tiny(case), tiny(case)
    x = images(model)
    wanted = complete.default_out_indices if out_indices is None else out_indices
    expected = complete.forward_intermediates(x, indices=wanted, norm=norm, intermediates_only=True)
    extractor = FeatureExtractor(model, out_indices, norm=norm)
    maps = extractor(x)
    assert_same(maps, expected)
    info = extractor.feature_info
    assert info.channels() == [part.shape[1] for part in maps]
    assert [size_of(complete)[0] // reduction for reduction in info.reduction()] == [part.shape[2] for part in maps]
    for name in info.module_name():
        extractor.model.get_submodule(name)
    count = sum(p.numel() for p in extractor.parameters())
    assert count < sum(p.numel() for p in complete.parameters())


def test_features_only_removes_unused_blocks_and_computes_gradients(case: str) -> None:
    complete, model = tiny(case), tiny(case)
    extractor = FeatureExtractor(model, [0]).train()
    last_block = f"{complete.feature_info[-1]['module']}."
    assert any(name.startswith(last_block) for name, _ in complete.named_parameters())
    assert not any(name.startswith(last_block) for name, _ in extractor.model.named_parameters())
    extractor(images(complete))[0].square().sum().backward()
    assert any(p.grad is not None for p in extractor.parameters())


def test_features_only_as_tokens() -> None:
    model = tiny("mixer")
    x = images(model)
    expected = model.forward_intermediates(x, indices=[0, 1], output_fmt="NLC", intermediates_only=True)
    assert_same(FeatureExtractor(model, [0, 1], output_fmt="NLC")(x), expected)


def test_pruning_can_keep_norm_and_head(case: str) -> None:
    model = tiny(case)
    x = images(model)
    first = model.forward_intermediates(x, indices=[0], intermediates_only=True)
    kept = model.prune_intermediate_layers([0], prune_norm=False, prune_head=False)
    assert_same(model.forward_intermediates(x, indices=kept, intermediates_only=True), first)
    assert model(x).shape == (2, NUM_CLASSES)
    model.prune_intermediate_layers([0], prune_norm=True)
    assert not any(module.training for module in model.modules())
    assert len(model.feature_info) == len(model.forward_intermediates(x, intermediates_only=True))


# --- training ---------------------------------------------------------------------------------------------------------


DROPS = [(case, field) for case in TINY for field in fields_of(case) if re.search("drop.*_rate$", field)]


@pytest.mark.parametrize(("case", "field"), DROPS)
def test_dropout_is_for_training_only(case: str, field: str) -> None:
    plain, model = tiny(case), tiny(case, **{field: 0.5})
    x = images(model, batch=8)
    assert_same(model(x), plain(x))

    def twice(net: nn.Module) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        return net.train()(x), net(x)

    assert_same(*twice(plain))
    first, second = twice(model)
    assert not torch.allclose(first, second, atol=1e-3)


def loss_and_gradients(model: ImageModel, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean cross-entropy for arbitrary labels, and the gradients of all parameters by name."""
    model.zero_grad()
    target = torch.arange(len(x)) % NUM_CLASSES
    loss = F.cross_entropy(model(x), target)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert gradients.keys() == dict(model.named_parameters()).keys()
    return loss.detach(), gradients


def test_gradient_checkpointing_does_not_change_results(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, model = tiny(case, drop_path_rate=0.3).train(), tiny(case, drop_path_rate=0.3).train()
    calls: list[nn.Module] = []

    def counted(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls.append(block)
        return checkpoint(block, *args, **kwargs)

    monkeypatch.setattr("tessella.models.base.checkpoint", counted)
    model.set_grad_checkpointing()
    x = images(model, batch=4)
    torch.manual_seed(0)
    loss, gradients = loss_and_gradients(model, x)
    blocks = {info["module"] for info in model.feature_info}
    assert len(calls) == len(blocks)
    torch.manual_seed(0)
    plain_loss, plain_gradients = loss_and_gradients(plain, x)
    assert torch.equal(loss, plain_loss)
    for name, gradient in plain_gradients.items():
        assert torch.equal(gradients[name], gradient), name
    for (name, value), (_, plain_value) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.equal(value, plain_value), name
    model.set_grad_checkpointing(False)
    loss_and_gradients(model, x)
    model.set_grad_checkpointing(True)
    model.eval()(x)
    assert len(calls) == len(blocks)


def test_every_parameter_gets_a_gradient(case: str) -> None:
    model = tiny(case).train()
    _, gradients = loss_and_gradients(model, images(model, batch=4))
    # these parameters add the same number to all scores of a softmax, or to all channels before a norm
    without_effect = re.compile(r"\.(pos_proj|wk|mlp_tokens\.fc2)\.bias$")
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name
        if not without_effect.search(name):
            assert gradient.abs().max() > 1e-7, name


def test_groups_cover_every_parameter_but_the_head(case: str) -> None:
    model = tiny(case)
    head = {id(p) for p in model.get_classifier().parameters()}
    for coarse in (False, True):
        matcher = model.group_matcher(coarse=coarse)
        patterns = [
            pattern if isinstance(pattern, str) else pattern[0]
            for group in matcher.values()
            for pattern in (group if isinstance(group, list) else [group])
        ]
        numbers = set()
        for name, parameter in model.named_parameters():
            matches = [match for pattern in patterns if (match := re.match(pattern, name))]
            assert len(matches) == (0 if id(parameter) in head else 1), name
            numbers |= {int(number) for match in matches for number in match.groups()}
        assert numbers == set(range(len({info["module"] for info in model.feature_info})))
        assert next(iter(matcher)) == "stem"


def test_no_weight_decay_names_parameters(case: str) -> None:
    model = tiny(case)
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}


def test_inference_mode_then_training(case: str) -> None:
    model = tiny(case)
    x = images(model)
    with torch.inference_mode():
        before = model(x).clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_and_gradients(model.train(), x)
    optimizer.step()
    assert not torch.equal(model.eval()(x), before)


# --- the model as an object -------------------------------------------------------------------------------------------


def test_bfloat16_is_close(case: str) -> None:
    model = tiny(case)
    x = images(model, batch=8)
    reference = model(x)
    half = model.to(torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - reference).pow(2).mean().sqrt() < 0.03 * reference.std()


def test_bfloat16_loses_nothing_but_the_weights(case: str) -> None:
    """Casting to bfloat16 and back rounds only parameters and statistics, not constants."""
    model = tiny(case)
    x = images(model)
    rounded = tiny(case)
    rounded.load_state_dict(
        {k: v.bfloat16().float() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    )
    assert_same(model.bfloat16().float()(x), rounded(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_give_the_same_outputs(case: str, copied: Callable[[ImageModel], ImageModel]) -> None:
    model = tiny(case)
    x = images(model)
    expected = model(x)
    other = copied(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_same(other(x), expected)
    assert other.config == model.config
    assert other.arch == model.arch


def test_forward_changes_nothing(case: str) -> None:
    model = tiny(case)
    x = images(model)
    original = x.clone()
    before = snapshot(model)
    with torch.inference_mode():
        model(x)
        model.forward_intermediates(x, norm=True)
    assert_unchanged(before, snapshot(model))
    assert torch.equal(x, original)


def test_training_forward_changes_only_batch_statistics(case: str) -> None:
    model = tiny(case).train()
    before = snapshot(model)
    model(images(model))
    after = snapshot(model)
    counted = ("running_mean", "running_var", "num_batches_tracked")
    assert_unchanged(
        {k: v for k, v in before.items() if not k.endswith(counted)},
        {k: v for k, v in after.items() if not k.endswith(counted)},
    )


# The first backend traces, decomposes and partitions as inductor does, in a second or two; inductor itself then runs
# g++ for each kernel, 8 to 40 s per model, so only one convolutional and one token model are compiled.
COMPILES = [(case, "aot_eager_decomp_partition") for case in TINY] + [
    pytest.param(case, "inductor", marks=pytest.mark.slow) for case in ("convmixer_relu", "mixer")
]


@pytest.mark.parametrize(("case", "backend"), COMPILES)
def test_compile(case: str, backend: str) -> None:
    model = tiny(case)
    x = images(model)
    torch.compiler.reset()
    with warnings.catch_warnings(), torch.inference_mode():
        # raised by torch's own imports
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        compiled = torch.compile(model, fullgraph=True, backend=backend)(x)
    assert torch.allclose(compiled, model(x), rtol=1e-4, atol=1e-5)


def test_export_with_any_batch(case: str) -> None:
    model = tiny(case)
    program = torch.export.export(model, (images(model, batch=2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    exported = program.module()
    for batch in (1, 2, 5):
        x = images(model, batch=batch, seed=batch)
        assert torch.allclose(exported(x), model(x), rtol=1e-5, atol=1e-6)


def replicas(model: nn.Module, count: int) -> list[nn.Module]:
    """Return what `torch.nn.parallel.replicate` creates for several GPUs, but on one device.

    Each replica is a shallow copy of the module tree in which plain tensors stand where the parameters were.
    """
    originals = list(model.modules())
    copies = []
    for _ in range(count):
        shallow = {id(module): module._replicate_for_data_parallel() for module in originals}
        for module in originals:
            replica = shallow[id(module)]
            for name, child in module._modules.items():
                replica._modules[name] = None if child is None else shallow[id(child)]
            for name, parameter in module._parameters.items():
                if parameter is None:
                    replica._parameters[name] = None
                else:
                    setattr(replica, name, parameter.clone())
            for name, buffer in module._buffers.items():
                replica._buffers[name] = None if buffer is None else buffer.clone()
        copies.append(shallow[id(model)])
    return copies


def test_replicas_in_threads(case: str) -> None:
    model = tiny(case)
    batches = [images(model, batch=3, seed=1), images(model, batch=2, seed=2)]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda replica, x: replica(x), replicas(model, 2), batches))
    for answer, x in zip(answers, batches, strict=True):
        assert_same(answer, model(x))
    torch.cat(answers).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# --- arguments --------------------------------------------------------------------------------------------------------


def test_the_error_for_an_unknown_argument_lists_the_known_ones(case: str) -> None:
    with pytest.raises(UsageError) as caught:
        tiny(case, widht=3)
    assert caught.value.code == "bad_argument"
    assert "'widht'" in caught.value.message
    for field in fields_of(case):
        assert field in caught.value.hint


def test_the_error_for_an_unknown_architecture_suggests_similar_names() -> None:
    with pytest.raises(UsageError) as caught:
        build("mixer_b16_225")
    assert caught.value.code == "unknown_model"
    assert "mixer_b16_224" in caught.value.hint


def test_none_keeps_the_field() -> None:
    assert build("mixer_s32_224", num_classes=None, num_blocks=1).num_classes == 1000


@pytest.mark.parametrize("case", FIXED_SIZE)
def test_the_error_for_a_wrong_size_states_both_sizes(case: str) -> None:
    model = tiny(case)
    height, width = size_of(model)
    for wrong in ((height, 2 * width), (2 * height, width), (height - 1, width - 1)):
        with pytest.raises(UsageError) as caught:
            model(torch.zeros(1, 3, *wrong))
        assert caught.value.code == "wrong_input_size"
        assert f"{wrong[0]}x{wrong[1]}" in caught.value.message
        assert f"{height}x{width}" in caught.value.message


@pytest.mark.parametrize("case", FIXED_SIZE)
def test_a_model_can_be_built_for_rectangular_images(case: str) -> None:
    height, width = size_of(tiny(case))
    for size in ((height, 2 * width), [2 * height, width]):
        model = tiny(case, img_size=size)
        assert model(torch.randn(2, 3, *size)).shape == (2, NUM_CLASSES)
        rows_cols = [part.shape[-2:] for part in model.forward_intermediates(torch.randn(1, 3, *size))[1]]
        assert all((rows > cols) == (size[0] > size[1]) for rows, cols in rows_cols)


@pytest.mark.parametrize("case", sorted(ANY_SIZE))
def test_convmixer_accepts_any_size(case: str) -> None:
    model = tiny(case)
    for height, width in ((4, 4), (32, 48), (33, 7)):
        maps = model.forward_features(torch.randn(1, 3, height, width))
        assert maps.shape == (1, 16, height // 4, width // 4)
        assert model.forward_head(maps).shape == (1, NUM_CLASSES)
    with pytest.raises(UsageError) as caught:
        model(torch.zeros(1, 3, 3, 50))
    assert caught.value.code == "wrong_input_size"
    assert "3x50" in caught.value.message
