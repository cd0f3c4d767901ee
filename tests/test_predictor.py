"""The Predictor: all kinds of input, results in order for any batch size, and one record per bad image."""

from __future__ import annotations

import copy
import io
import itertools
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image

import tessella
from tessella import ImageError, Predictor, UsageError, WeightsError
from tessella.data.factory import create_transform
from tessella.data.labels import labels_for
from tessella.data.sources import iter_sources
from tessella.data.spec import resolve_model_data_config
from tessella.engine import make_plan
from tessella.models import build
from tests.golden_rule import fill_golden
from tests.test_builtin import CIFAR10_MODEL

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tessella.load(CIFAR10_MODEL)


@pytest.fixture(scope="module")
def photos(predictor: Predictor) -> list[np.ndarray]:
    """37 different pictures: more than four batches, the last one not full."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (37, 4, 4, 3), dtype=np.uint8)
    return [np.array(Image.fromarray(image).resize((40, 50), Image.Resampling.BICUBIC)) for image in small]


def tiny(arch: str, **overrides: Any) -> Any:
    model = build(arch, **overrides)
    fill_golden(model)
    size = overrides.get("img_size", 32)
    model.pretrained_cfg = dict(input_size=(3, size, size), crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3)
    return model


FAMILIES = {
    "convmixer": lambda: tiny("convmixer_768_32", dim=16, depth=2, num_classes=7),
    "convit": lambda: tiny(
        "convit_tiny", embed_dim=8, num_heads=4, depth=3, local_up_to_layer=2, img_size=32, num_classes=7
    ),
    "mixer": lambda: tiny("mixer_s32_224", embed_dim=16, num_blocks=2, patch_size=8, img_size=32, num_classes=7),
    "gmixer": lambda: tiny("gmixer_12_224", embed_dim=16, num_blocks=2, patch_size=8, img_size=32, num_classes=7),
    "crossvit": lambda: tiny("crossvit_tiny_240", img_size=120, num_classes=7),
}


@pytest.mark.parametrize("engine", ["eager", "auto"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_embeddings_equal_those_of_the_model(family: str, engine: str) -> None:
    model = FAMILIES[family]()
    reference = copy.deepcopy(model)
    transform = create_transform(**resolve_model_data_config(reference))
    image = Image.open(EXAMPLES / "cat.jpg")
    with torch.inference_mode():
        features = reference.forward_features(transform(image)[None])
        probabilities = reference.forward_head(features).softmax(1)
        embedding = torch.nn.functional.normalize(reference.forward_head(features, pre_logits=True))
    scores = Predictor(model, plan=make_plan(engine=engine)).predict(image)
    close = 1e-6 if engine == "eager" else 3e-6  # the rewrites sum in another order
    assert_allclose(scores.probabilities, probabilities.numpy(), atol=close)
    assert_allclose(scores.embeddings, embedding.numpy(), atol=close)
    assert scores.embeddings.shape[1] == reference.num_features


def test_every_kind_of_input_gives_the_same_result(predictor: Predictor) -> None:
    path = EXAMPLES / "cat.jpg"
    image = Image.open(path)
    kinds: list[Any] = [path, str(path), path.read_bytes(), memoryview(path.read_bytes()), image, np.array(image)]
    kinds.append(np.array(image).astype(np.float32) / 255)
    kinds.append(next(iter_sources([str(path)])))
    expected = predictor.predict(path).probabilities[0]
    for kind in kinds:
        assert_allclose(predictor.predict(kind).probabilities[0], expected, atol=1e-6)
    assert_allclose(predictor.predict(kinds).probabilities, np.tile(expected, (len(kinds), 1)), atol=1e-5)
    batch = np.stack([np.array(image)] * 3)
    assert predictor.embed(batch).shape == (3, predictor.model.num_features)


def test_one_image_gives_one_result_and_a_list_gives_a_list(predictor: Predictor) -> None:
    cat = EXAMPLES / "cat.jpg"
    best = predictor.classify(cat, top=3)
    assert [type(prediction) for prediction in best] == [tessella.Prediction] * 3
    assert best[0].probability >= best[1].probability >= best[2].probability
    assert best[0].label == predictor.labels[best[0].index]
    assert predictor.classify([cat], top=3)[0][0].index == best[0].index
    assert len(predictor.classify([cat, cat], top=99)[1]) == 10
    assert predictor.embed(cat).shape == (256,)
    assert predictor.embed([cat, cat]).shape == (2, 256)
    assert_allclose(np.linalg.norm(predictor.embed([cat]), axis=1), 1, atol=1e-6)
    assert predictor.classify([]) == []
    assert predictor.embed([]).shape == (0, 256)
    assert predictor.predict([]).probabilities.shape == (0, 10)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8, 36, 64])
def test_results_keep_their_order_for_any_batch_size(
    predictor: Predictor, photos: list[np.ndarray], batch_size: int
) -> None:
    single = np.concatenate([predictor.predict(photo).probabilities for photo in photos])
    other = Predictor(predictor.model, plan=make_plan(batch_size=batch_size)).with_calibration(predictor.calibration)
    batched = other.predict(iter(photos))
    assert_allclose(batched.probabilities, single, atol=1e-5)
    # the pictures differ by far more than the tolerance, so a swap would be seen
    distances = np.abs(single[:, None] - single[None]).max(2) + np.eye(len(photos))
    assert distances.min() > 1e-3


def test_a_bad_image_is_one_record_and_changes_no_other(predictor: Predictor, photos: list[np.ndarray]) -> None:
    bad = {0: b"", 5: b"not an image", 6: Path("absent.jpg"), 20: (EXAMPLES / "cat.jpg").read_bytes()[:5000], 36: b"BM"}
    mixed: list[Any] = [bad.get(i, photo) for i, photo in enumerate(photos)]
    records = list(predictor.records(mixed, top=2))
    assert [record.key for record in records] == [str(i) if i != 6 else "absent.jpg" for i in range(len(mixed))]
    codes = {i: record.status for i, record in enumerate(records) if record.status != "ok"}
    assert codes == {0: "empty", 5: "unsupported_format", 6: "not_found", 20: "corrupt_image", 36: "corrupt_image"}
    good = [i for i in range(len(mixed)) if i not in bad]
    single = predictor.predict([photos[i] for i in good])
    for row, i in enumerate(good):
        assert_allclose(records[i].top[0].probability, single.probabilities[row].max(), atol=1e-5)
        assert records[i].top[0].index == single.probabilities[row].argmax()
        vector = records[i].embedding
        assert vector is not None
        assert_allclose(vector, single.embeddings[row], atol=1e-5)
    assert all(
        record.embedding is None and not record.top and record.message for record in map(records.__getitem__, bad)
    )


def test_a_batch_of_bad_images_only(predictor: Predictor) -> None:
    assert [r.status for r in predictor.records([b""] * 20)] == ["empty"] * 20


def test_a_bad_image_in_a_list_is_named_by_its_position(predictor: Predictor) -> None:
    with pytest.raises(ImageError, match="image 2: ") as caught:
        predictor.classify([EXAMPLES / "cat.jpg", EXAMPLES / "coffee.jpg", b"junk"])
    assert caught.value.code == "unsupported_format"


def test_records_of_endless_bad_images_come_one_by_one(predictor: Predictor) -> None:
    records = predictor.records(itertools.repeat(b"not an image"))
    for i in range(200):
        record = next(records)
        assert (record.key, record.status) == (str(i), "unsupported_format")


def test_records_read_only_a_little_ahead(predictor: Predictor, photos: list[np.ndarray]) -> None:
    read = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal read
        while True:
            read += 1
            yield photos[0]

    records = predictor.records(endless(), keys=map(str, iter(int, 1)))
    for _ in range(3):
        next(records)
    assert read <= 4 * predictor.plan.batch_size
    records.close()


def test_threads_share_a_predictor(predictor: Predictor, photos: list[np.ndarray]) -> None:
    expected = predictor.predict(photos).probabilities
    failures: list[str] = []

    def work(i: int) -> None:
        if np.abs(predictor.predict(photos[i]).probabilities[0] - expected[i]).max() > 1e-5:
            failures.append(str(i))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_features(predictor: Predictor) -> None:
    maps = predictor.features([EXAMPLES / "cat.jpg"] * 9)
    assert [array.shape for array in maps] == [(9, 256, 8, 8)] * 3
    (last,) = predictor.features([EXAMPLES / "cat.jpg"] * 9, [-1])
    assert_allclose(last, maps[-1], atol=1e-5)
    (last,) = predictor.features(EXAMPLES / "cat.jpg", [-1])
    # another batch size may sum in another order: rounding is relative to the map's largest value, about 10
    assert_allclose(last[0], maps[-1][0], rtol=0, atol=1e-5 * np.abs(last).max())


def test_features_of_no_images_have_the_shapes_of_others(predictor: Predictor) -> None:
    for indices in (None, [-1], 2):
        expected = [(0, *array.shape[1:]) for array in predictor.features([EXAMPLES / "cat.jpg"], indices)]
        maps = predictor.features([], indices)
        assert [array.shape for array in maps] == expected
        assert {array.dtype for array in maps} == {np.dtype(np.float32)}


def test_feature_records_are_one_per_image(predictor: Predictor) -> None:
    cat = EXAMPLES / "cat.jpg"
    records = list(predictor.feature_records([cat, b"junk", cat], [0, -1], keys=["a", "b", "c"]))
    assert [(record.key, record.status) for record in records] == [
        ("a", "ok"),
        ("b", "unsupported_format"),
        ("c", "ok"),
    ]
    for record in (records[0], records[2]):
        for actual, expected in zip(record.features, predictor.features(cat, [0, -1]), strict=True):
            assert np.array_equal(actual, expected[0])
    assert (records[1].features, records[0].top, records[0].embedding) == ((), (), None)
    with pytest.raises(UsageError, match="block numbers"):
        predictor.feature_records([cat], ["x"])  # type: ignore[list-item]


def test_feature_records_before_an_exception_of_the_iterable_come_first(predictor: Predictor) -> None:
    def images() -> Iterator[Path]:
        yield EXAMPLES / "cat.jpg"
        raise ConnectionError("the caller's own")

    records = predictor.feature_records(images())
    assert next(records).status == "ok"
    with pytest.raises(ConnectionError, match="the caller's own"):
        next(records)


def test_feature_maps_that_are_not_finite_are_a_record() -> None:
    model = tiny("convmixer_768_32", dim=8, depth=1)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    (record,) = Predictor(model).feature_records(EXAMPLES / "cat.jpg")
    assert (record.status, record.features) == ("non_finite", ())


def test_labels_come_from_the_checkpoint_or_the_class_count() -> None:
    known = Predictor(tiny("convmixer_768_32", dim=8, depth=1))
    assert known.labels == labels_for("imagenet-1k").names
    assert known.classify(EXAMPLES / "cat.jpg")[0].synset.startswith("n")
    unknown = Predictor(tiny("convmixer_768_32", dim=8, depth=1, num_classes=3))
    assert unknown.labels == ("0", "1", "2")
    assert "index" in {row.what: row.reason for row in unknown.plan.choices}["labels"]


def test_a_model_without_classifier_embeds_but_does_not_classify() -> None:
    headless = Predictor(tiny("convmixer_768_32", dim=8, depth=1, num_classes=0))
    assert headless.embed(EXAMPLES / "cat.jpg").shape == (8,)
    assert [r.status for r in headless.records([EXAMPLES / "cat.jpg"], top=0)] == ["ok"]
    with pytest.raises(UsageError, match="no classifier"):
        headless.classify(EXAMPLES / "cat.jpg")


@pytest.mark.parametrize(
    "arguments",
    [
        dict(device="warp"),
        dict(device="cuda:99"),
        dict(precision="float8"),
        dict(engine="steam"),
        dict(batch_size=0),
        dict(transform="sloppy"),
        dict(policy="none"),
    ],
)
def test_unknown_settings_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        tessella.load(**arguments)
    assert caught.value.code == "bad_argument"


def test_choices_are_kept_and_explained() -> None:
    pinned = tessella.load(precision="bfloat16", batch_size=3, transform="fast", policy="timm", device="cpu")
    chosen = {row.what: row.chosen for row in pinned.plan.choices}
    assert chosen["precision"] == "bfloat16"
    assert chosen["batch"] == "3 images"
    assert (chosen["transform"], chosen["policy"], chosen["device"]) == ("fast", "timm", "cpu")
    assert all(row.reason for row in pinned.plan.choices)
    exact = tessella.load()
    cat = EXAMPLES / "cat.jpg"
    assert float(pinned.embed(cat) @ exact.embed(cat)) > 0.99
    assert "float32 (exact" in str(exact.plan)


def test_the_fingerprint_changes_with_everything_that_determines_the_results(predictor: Predictor) -> None:
    other = copy.deepcopy(predictor.model)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0].add_(1e-3)
    prints = [
        predictor.fingerprint,
        Predictor(other).fingerprint,
        tessella.load(CIFAR10_MODEL, policy="timm").fingerprint,
        tessella.load(CIFAR10_MODEL, transform="fast").fingerprint,
        tessella.load(CIFAR10_MODEL, precision="bfloat16").fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert tessella.load(CIFAR10_MODEL, batch_size=1).fingerprint == predictor.fingerprint


def test_models_of_other_than_three_channels_are_refused() -> None:
    grey = build("convmixer_768_32", dim=8, depth=1, in_chans=1)
    grey.pretrained_cfg = dict(input_size=(1, 32, 32), mean=(0.5,), std=(0.5,))
    with pytest.raises(UsageError, match="1 channels"):
        Predictor(grey)


def test_orientation_is_respected_except_with_the_policy_of_timm(predictor: Predictor) -> None:
    image = Image.open(EXAMPLES / "cat.jpg")
    rotated = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown upright by a quarter turn clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(rotated, "PNG", exif=exif)
    upright = io.BytesIO()
    image.save(upright, "PNG")
    same = predictor.embed(upright.getvalue()) @ predictor.embed(rotated.getvalue())
    as_timm = tessella.load(policy="timm")
    other = as_timm.embed(upright.getvalue()) @ as_timm.embed(rotated.getvalue())
    assert same > 0.9999 > other


# --- one image or many ------------------------------------------------------------------------------------------------


def not_images() -> dict[str, Any]:
    """Objects that are not images, each with the code of its record."""
    pixels = np.zeros((4, 4, 3), np.uint8)
    return {
        "none": (None, "bad_argument"),
        "nan": (float("nan"), "bad_argument"),
        "number": (3, "bad_argument"),
        "numpy number": (np.float32(3), "bad_array"),
        "mapping": ({"image": pixels}, "bad_argument"),
        "list": ([pixels], "bad_argument"),
        "tuple": ((1, 2), "bad_argument"),
        "set": ({1}, "bad_argument"),
        "object": (object(), "bad_argument"),
        "function": (len, "bad_argument"),
        "folder": (EXAMPLES, "bad_argument"),
        "text file": (io.StringIO("x"), "bad_argument"),
        "closed file": (closed_file(), "unreadable"),
        "no path": ("a\0b", "unreadable"),
        "long path": ("a" * 5000, "unreadable"),
        "scalar array": (np.zeros(()), "bad_array"),
        "object array": (np.zeros((4, 4), object), "bad_array"),
        "bool array": (np.zeros((4, 4), bool), "bad_array"),
        "uint16 array": (np.zeros((4, 4), np.uint16), "bad_array"),
        "int64 array": (np.zeros((4, 4), np.int64), "bad_array"),
        "complex array": (np.zeros((4, 4), complex), "bad_array"),
        "int64 tensor": (torch.zeros(3, 8, 8, dtype=torch.int64), "bad_array"),
        "normalised tensor": (torch.full((3, 8, 8), -1.0), "bad_array"),
        "tensor without memory": (torch.zeros(3, 8, 8, device="meta"), "bad_array"),
        "sparse tensor": (torch.zeros(3, 8, 8).to_sparse(), "bad_array"),
        "broken array": (BrokenArray(), "bad_argument"),
        "broken path": (BrokenPath(), "bad_argument"),
        "path of another type": (BrokenPath(5), "bad_argument"),
        "broken file": (BrokenFile(), "bad_argument"),
        "huge number": (10**5000, "bad_argument"),
    }


def closed_file() -> Any:
    file = io.BytesIO()
    file.close()
    return file


class BrokenArray:
    def __array__(self) -> Any:
        raise KeyError("an error of another library")


class BrokenPath(os.PathLike[Any]):
    def __init__(self, name: Any = None):
        self.name = name

    def __fspath__(self) -> Any:
        if self.name is None:
            raise KeyError("an error of another library")
        return self.name


class BrokenFile:
    @property
    def read(self) -> Any:
        raise KeyError("an error of another library")


@pytest.mark.parametrize("good", [0, 1, 11])
def test_rows_before_an_exception_of_the_iterable_come_first(predictor: Predictor, good: int) -> None:
    def images() -> Iterator[Any]:
        yield from [np.full((4, 4, 3), i, np.uint8) for i in range(good)]
        raise ConnectionError("the caller's own")

    for stream in (predictor.records(images(), top=0), predictor.outputs(images())):
        rows: list[Any] = []
        with pytest.raises(ConnectionError, match="the caller's own"):
            rows.extend(stream)
        assert len(rows) == good


def test_a_bad_item_of_any_kind_is_one_record(predictor: Predictor) -> None:
    cases = not_images()
    cat = EXAMPLES / "cat.jpg"
    mixed = [item for bad, _ in cases.values() for item in (bad, cat)]
    records = list(predictor.records((item for item in mixed), top=1))
    assert len(records) == len(mixed)
    assert {name: record.status for name, record in zip(cases, records[::2], strict=True)} == {
        name: code for name, (_, code) in cases.items()
    }
    assert all(record.message for record in records[::2])
    assert {record.status for record in records[1::2]} == {"ok"}


@pytest.mark.parametrize(
    ("dtype", "hint"), [(np.uint16, "/ 65535"), (np.int64, "astype"), (np.bool_, "* 255")], ids=str
)
def test_arrays_of_other_types_are_refused_with_a_hint(predictor: Predictor, dtype: Any, hint: str) -> None:
    with pytest.raises(ImageError, match="expected uint8 or float") as caught:
        predictor.classify(np.zeros((4, 4, 3), dtype))
    assert hint in caught.value.hint
    (record,) = predictor.records(np.zeros((4, 4, 3), dtype))
    assert hint in record.message


@pytest.mark.parametrize("single", ["examples/cat.jpg", b"junk", None, 3, {"a": 1}, np.zeros((4, 4)), io.BytesIO(b"x")])
def test_a_single_item_is_never_taken_for_a_collection(predictor: Predictor, single: Any) -> None:
    assert len(list(predictor.records(single, top=0))) == 1
    assert len(list(predictor.outputs(single))) == 1


def test_the_error_of_a_single_image_has_no_position(predictor: Predictor) -> None:
    cases: list[Any] = [b"junk", None, {"a": 1}, io.BytesIO(b"x")]
    for wrong in cases:
        with pytest.raises(ImageError) as caught:
            predictor.classify(wrong)
        assert "image 0" not in str(caught.value)


def test_names_of_collections_are_listed(predictor: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("cat.jpg", "coffee.jpg"):
        shutil.copy(EXAMPLES / name, folder / name)
    archive = tmp_path / "some.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder / "cat.jpg", "cat.jpg")
        tar.add(folder / "coffee.jpg", "coffee.jpg")
    (tmp_path / "list.txt").write_text(f"{folder / 'cat.jpg'}\n{folder / 'coffee.jpg'}\n")
    expected = predictor.embed([folder / "cat.jpg", folder / "coffee.jpg"])
    names: list[Any] = [folder, str(folder), str(folder / "*.jpg"), archive, f"@{tmp_path / 'list.txt'}"]
    for name in [*names, f"file://{folder}"]:
        assert_allclose(predictor.embed(name), expected, atol=1e-6)
        assert [len(predictions) for predictions in predictor.classify(name, top=2)] == [2, 2]
        assert len(predictor.predict(name).embeddings) == 2
        assert [Path(r.key.replace("::", "/")).name for r in predictor.records(name)] == ["cat.jpg", "coffee.jpg"]
    assert predictor.embed(f"file://{folder}/cat.jpg").shape == (256,)
    strange = folder / "a[1]*.jpg"  # a file of that name is a file
    shutil.copy(EXAMPLES / "cat.jpg", strange)
    assert predictor.embed(strange).shape == (256,)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no image in the folder"):
        predictor.classify(tmp_path / "empty")


def test_tensors_have_channels_first(predictor: Predictor) -> None:
    pixels = np.array(Image.open(EXAMPLES / "cat.jpg"))
    expected = predictor.embed(pixels)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    alpha = torch.cat([tensor, torch.full_like(tensor[:1], 255)])
    for image in (tensor, tensor / 255, (tensor / 255).double().requires_grad_(), alpha):
        assert_allclose(predictor.embed(image), expected, atol=1e-5)
    assert_allclose(predictor.embed(torch.stack([tensor, tensor])), [expected, expected], atol=1e-5)
    assert_allclose(predictor.embed([tensor, pixels]), [expected, expected], atol=1e-5)
    grey = predictor.embed(pixels[:, :, 0])
    assert_allclose(predictor.embed(tensor[0]), grey, atol=1e-6)
    assert_allclose(predictor.embed(tensor[:1]), grey, atol=1e-6)
    assert float(predictor.embed((tensor / 255).half()) @ expected) > 0.999
    assert float(predictor.embed((tensor / 255).bfloat16()) @ expected) > 0.99
    with pytest.raises(ImageError, match=r"3 channels of 40x3 pixels, or 3x40 pixels of 3 channels"):
        predictor.embed(torch.zeros(3, 40, 3))
    with pytest.raises(ImageError, match=r"image.permute\(2, 0, 1\)"):
        predictor.embed(torch.from_numpy(pixels))


def test_open_files_are_read_and_named(predictor: Predictor) -> None:
    path = EXAMPLES / "cat.jpg"
    with path.open("rb") as file:
        assert_allclose(predictor.embed(file), predictor.embed(path), atol=1e-6)
        file.seek(0)
        assert [record.key for record in predictor.records([file, io.BytesIO(b"")])] == [str(path), "1"]
    assert predictor.embed(np.array([str(path), str(path)])).shape == (2, 256)  # an array of names
    with path.open() as file, pytest.raises(ImageError, match="'rb'"):
        predictor.embed(file)


def test_keys_are_one_per_image(predictor: Predictor) -> None:
    cat = EXAMPLES / "cat.jpg"
    assert [r.key for r in predictor.records([cat, None], keys=iter(["a", "b"]))] == ["a", "b"]
    for keys in (["a"], ["a", "b", "c"], "ab", 3):
        with pytest.raises(UsageError) as caught:
            list(predictor.records([cat, cat], keys=keys))  # type: ignore[arg-type]
        assert caught.value.code == "bad_argument"


@pytest.mark.parametrize("embed", [np.zeros((2, 2)), "yes", None])
def test_embed_is_true_or_false(predictor: Predictor, embed: Any) -> None:
    with pytest.raises(UsageError) as caught:
        predictor.records([EXAMPLES / "cat.jpg"], embed=embed)
    assert caught.value.code == "bad_argument"


@pytest.mark.parametrize("top", [-1, None, 1.5, "3", True])
def test_top_is_a_number_of_classes(predictor: Predictor, top: Any) -> None:
    for call in (predictor.classify, predictor.records):
        with pytest.raises(UsageError, match="top is"):
            call(EXAMPLES / "cat.jpg", top=top)


def test_outputs_that_are_not_finite_are_an_error_and_a_record() -> None:
    model = tiny("convmixer_768_32", dim=8, depth=1)
    with torch.no_grad():
        model.head.bias[0] = float("inf")
    broken = Predictor(model)
    cat = EXAMPLES / "cat.jpg"
    records = list(broken.records([cat, b""]))
    assert (records[0].status, records[0].top, records[0].embedding) == ("non_finite", (), None)
    assert records[1].status == "empty"
    for call in (broken.classify, broken.predict, broken.embed):
        with pytest.raises(WeightsError) as caught:
            call(cat)
        assert caught.value.code == "non_finite"
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(WeightsError):
        Predictor(model).features(cat)


def test_changes_to_the_module_do_not_change_the_predictor() -> None:
    cat = EXAMPLES / "cat.jpg"
    changed = tessella.load()
    before = changed.predict(cat)
    with torch.no_grad():
        for parameter in changed.model.parameters():
            parameter.mul_(2)
    np.testing.assert_array_equal(changed.predict(cat).probabilities, before.probabilities)


def test_representations_for_terminals_and_notebooks(predictor: Predictor) -> None:
    assert repr(predictor).startswith("<Predictor convmixer_256_8_ks3_p4.cifar10: 32x32 px, 10 classes, 256 features;")
    scores = predictor.predict(EXAMPLES / "cat.jpg")
    assert repr(scores) == "Scores(probabilities=float32 (1, 10), embeddings=float32 (1, 256))"
    fast = tessella.optimize(predictor.model)
    assert repr(fast).startswith("<Optimized convmixer_256_8_ks3_p4: (B,3,32,32); cpu, float32, openvino")
    for displayed in (predictor, scores, fast, predictor.classify(EXAMPLES / "cat.jpg")[0], predictor.predict([])):
        page = displayed._repr_html_()
        assert page.count("<table>") == page.count("</table>") == 1
    hostile = tessella.Prediction(0, "<script>alert('x')</script>\x1b", 0.5)._repr_html_()
    assert "<script>" not in hostile
    assert "&lt;script&gt;" in hostile
    assert "\x1b" not in hostile
    named = Predictor(tiny("convmixer_768_32", dim=8, depth=1), name="<b>\x1b")
    assert "\x1b" not in repr(named)
    assert "<b>" not in named._repr_html_()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (dict(devic="cpu"), "bad_argument", "did you mean device"),
        (dict(batchsize=3), "bad_argument", "did you mean batch_size"),
        (dict(features_only=True), "bad_argument", "Predictor.features"),
        (dict(name="mixer_s32_224"), "no_weights", "checkpoint_path="),
        (dict(name="resnet50"), "unknown_model", "tessella list"),
        (dict(name=3), "bad_argument", "name is 3, expected a string or None"),
        (dict(name="local-dir:~nobody-of-this-name"), "bad_argument", "user who does not exist"),
        (dict(name="local-dir:"), "bad_argument", "local-dir:PATH"),
        (dict(name=f"local-dir:{'a' * 300}"), "weights_not_found", "does not exist"),
        (dict(device="meta"), "bad_argument", "cuda"),
        (dict(device=3), "bad_argument", "device is 3, expected a string"),
        (dict(batch_size=10**20), "bad_argument", "65,536"),
        (dict(batch_size=True), "bad_argument", "65,536"),
        (dict(precision=None), "bad_argument", "precision is None, expected a string"),
        (dict(mode="fast"), "bad_argument", "latency"),
        (dict(transform=None), "bad_argument", "'exact', 'fast'"),
        (dict(checkpoint_path=3), "bad_argument", "checkpoint_path is 3, expected a string, a path or None"),
    ],
    ids=str,
)
def test_load_reports_wrong_arguments(arguments: dict[str, Any], code: str, message: str) -> None:
    with pytest.raises(tessella.TessellaError) as caught:
        tessella.load(**arguments)
    assert caught.value.code == code
    assert message in str(caught.value)


def test_random_weights_are_available_on_request() -> None:
    assert tessella.load("mixer_s32_224", pretrained=False).num_classes == 1000


def test_a_predictor_needs_a_model() -> None:
    with pytest.raises(UsageError, match="create_model"):
        Predictor("convmixer_768_32")  # type: ignore[arg-type]


def test_a_tilde_is_expanded_to_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tessella.save_pretrained(tiny("convmixer_768_32", dim=8, depth=1, num_classes=3), tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tessella.load("local-dir:~/model").num_classes == 3


@pytest.mark.parametrize("indices", ["a", 1.5, [None], ["x"], 10**20, [-(10**20)], True, {}, [], [99], 0, -1, b"1"])
def test_wrong_block_numbers_are_refused(predictor: Predictor, indices: Any) -> None:
    with pytest.raises(UsageError) as caught:
        predictor.features(EXAMPLES / "cat.jpg", indices)
    assert caught.value.code == "bad_argument"


@pytest.mark.parametrize(
    "example", [3, "x", torch.zeros(3), np.zeros((1, 3, 32, 32))], ids=lambda value: type(value).__name__
)
def test_an_example_is_a_batch(predictor: Predictor, example: Any) -> None:
    with pytest.raises(UsageError, match=r"example is .*, expected (a batch|an instance of Tensor)"):
        tessella.optimize(predictor.model, example=example)
