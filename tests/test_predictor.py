"""The Predictor: every kind of input, order under any batching, one pass, records that never fail their neighbours."""

from __future__ import annotations

import copy
import io
import itertools
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
from tessella import ImageError, Predictor, UsageError
from tessella.data.labels import labels_for
from tessella.data.sources import iter_sources
from tessella.data.transforms import create_transform, resolve_model_data_config
from tessella.engine import make_plan
from tessella.models import build
from tests.golden_rule import fill_golden

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tessella.load()


@pytest.fixture(scope="module")
def photos(predictor: Predictor) -> list[np.ndarray]:
    """37 different pictures: more than four batches, the last one not full."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (37, 4, 4, 3), dtype=np.uint8)
    return [np.array(Image.fromarray(one).resize((40, 50), Image.Resampling.BICUBIC)) for one in small]


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
def test_scores_and_embedding_are_the_models_own(family: str, engine: str) -> None:
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


def test_every_kind_of_input_gives_the_same_answer(predictor: Predictor) -> None:
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


def test_one_image_gives_one_answer_and_a_list_gives_a_list(predictor: Predictor) -> None:
    cat = EXAMPLES / "cat.jpg"
    one = predictor.classify(cat, top=3)
    assert [type(p) for p in one] == [tessella.Prediction] * 3
    assert one[0].probability >= one[1].probability >= one[2].probability
    assert one[0].label == predictor.labels[one[0].index]
    assert predictor.classify([cat], top=3)[0][0].index == one[0].index
    assert len(predictor.classify([cat, cat], top=99)[1]) == 10
    assert predictor.embed(cat).shape == (256,)
    assert predictor.embed([cat, cat]).shape == (2, 256)
    assert_allclose(np.linalg.norm(predictor.embed([cat]), axis=1), 1, atol=1e-6)
    assert predictor.classify([]) == []
    assert predictor.embed([]).shape == (0, 256)
    assert predictor.predict([]).probabilities.shape == (0, 10)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8, 36, 64])
def test_batching_never_moves_an_answer(predictor: Predictor, photos: list[np.ndarray], batch_size: int) -> None:
    alone = np.concatenate([predictor.predict(photo).probabilities for photo in photos])
    batched = Predictor(predictor.model, plan=make_plan(batch_size=batch_size)).predict(iter(photos))
    assert_allclose(batched.probabilities, alone, atol=1e-5)
    # the pictures differ by far more than the tolerance, so a swap would be seen
    distances = np.abs(alone[:, None] - alone[None]).max(2) + np.eye(len(photos))
    assert distances.min() > 1e-3


def test_a_bad_image_is_one_record_and_harms_no_other(predictor: Predictor, photos: list[np.ndarray]) -> None:
    bad = {0: b"", 5: b"not an image", 6: Path("absent.jpg"), 20: (EXAMPLES / "cat.jpg").read_bytes()[:5000], 36: b"BM"}
    mixed: list[Any] = [bad.get(i, photo) for i, photo in enumerate(photos)]
    records = list(predictor.records(mixed, top=2))
    assert [record.key for record in records] == [str(i) if i != 6 else "absent.jpg" for i in range(len(mixed))]
    codes = {i: record.status for i, record in enumerate(records) if record.status != "ok"}
    assert codes == {0: "empty", 5: "unsupported_format", 6: "not_found", 20: "corrupt_image", 36: "corrupt_image"}
    good = [i for i in range(len(mixed)) if i not in bad]
    alone = predictor.predict([photos[i] for i in good])
    for row, i in enumerate(good):
        assert_allclose(records[i].top[0].probability, alone.probabilities[row].max(), atol=1e-5)
        assert records[i].top[0].index == alone.probabilities[row].argmax()
        vector = records[i].embedding
        assert vector is not None
        assert_allclose(vector, alone.embeddings[row], atol=1e-5)
    assert all(
        record.embedding is None and not record.top and record.message for record in map(records.__getitem__, bad)
    )


def test_a_batch_of_bad_images_only(predictor: Predictor) -> None:
    assert [r.status for r in predictor.records([b""] * 20)] == ["empty"] * 20


def test_a_bad_image_in_a_list_is_named_by_its_position(predictor: Predictor) -> None:
    with pytest.raises(ImageError, match="image 2: ") as caught:
        predictor.classify([EXAMPLES / "cat.jpg", EXAMPLES / "coffee.jpg", b"junk"])
    assert caught.value.code == "unsupported_format"


def test_endless_bad_images_come_out_as_they_are_read(predictor: Predictor) -> None:
    records = predictor.records(itertools.repeat(b"no image"))
    for i in range(200):
        record = next(records)
        assert (record.key, record.status) == (str(i), "unsupported_format")


def test_records_read_only_a_little_ahead(predictor: Predictor, photos: list[np.ndarray]) -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield photos[0]

    records = predictor.records(endless(), keys=map(str, iter(int, 1)))
    for _ in range(3):
        next(records)
    assert taken <= 4 * predictor.plan.batch_size
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
    assert [one.shape for one in maps] == [(9, 256, 8, 8)] * 3
    (last,) = predictor.features([EXAMPLES / "cat.jpg"] * 9, [-1])
    assert_allclose(last, maps[-1], atol=1e-5)
    (last,) = predictor.features(EXAMPLES / "cat.jpg", [-1])
    # another batch size may sum in another order: rounding is relative to the map's largest value, about 10
    assert_allclose(last[0], maps[-1][0], rtol=0, atol=1e-5 * np.abs(last).max())


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
def test_choices_that_cannot_be_served_are_refused(arguments: dict[str, Any]) -> None:
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


def test_the_fingerprint_tells_everything_apart_that_decides_the_numbers(predictor: Predictor) -> None:
    other = copy.deepcopy(predictor.model)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0].add_(1e-3)
    prints = [
        predictor.fingerprint,
        Predictor(other).fingerprint,
        tessella.load(policy="timm").fingerprint,
        tessella.load(transform="fast").fingerprint,
        tessella.load(precision="bfloat16").fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert tessella.load(batch_size=1).fingerprint == predictor.fingerprint


def test_images_of_other_channels_cannot_be_served() -> None:
    grey = build("convmixer_768_32", dim=8, depth=1, in_chans=1)
    grey.pretrained_cfg = dict(input_size=(1, 32, 32), mean=(0.5,), std=(0.5,))
    with pytest.raises(UsageError, match="1 channels"):
        Predictor(grey)


def test_orientation_is_respected_unless_timms_policy_is_asked_for(predictor: Predictor) -> None:
    image = Image.open(EXAMPLES / "cat.jpg")
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown upright by a quarter turn clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(turned, "PNG", exif=exif)
    upright = io.BytesIO()
    image.save(upright, "PNG")
    same = predictor.embed(upright.getvalue()) @ predictor.embed(turned.getvalue())
    as_timm = tessella.load(policy="timm")
    other = as_timm.embed(upright.getvalue()) @ as_timm.embed(turned.getvalue())
    assert same > 0.9999 > other
