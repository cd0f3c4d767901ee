"""Why images are similar: one result per image, whose links sum to the similarity, as objects, files and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tessella
from tessella.errors import ImageError, UsageError
from tessella.explain import FailedExplanation, LinkExplanation, Subject, explain_likeness
from tessella.explain.storage import read_arrays
from tessella.weights.catalogue import default_model

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CAT, COFFEE = str(EXAMPLES / "cat.jpg"), str(EXAMPLES / "coffee.jpg")


@pytest.fixture(scope="module")
def result() -> LinkExplanation:
    (found,) = explain_likeness(CAT, COFFEE)
    assert isinstance(found, LinkExplanation)
    return found


def test_the_similarity_is_that_of_the_embeddings(result: LinkExplanation) -> None:
    """The model is the one for photographs, as in `tessella embed`."""
    a, b = tessella.load().embed([CAT, COFFEE])
    assert abs(result.links.cosine - float(a @ b)) < 1e-5
    assert abs(result.links.values.sum() - result.links.cosine) < 1e-9
    assert (result.model, result.fingerprint) == (default_model(), tessella.load().fingerprint)
    assert (result.key, result.b.key) == (CAT, COFFEE)


def test_an_image_is_like_itself() -> None:
    (found,) = explain_likeness(CAT, CAT)
    assert isinstance(found, LinkExplanation)
    assert abs(found.links.cosine - 1) < 1e-6


def test_bad_images_keep_their_place() -> None:
    results = list(explain_likeness([CAT, "missing.jpg", None, COFFEE], CAT, keys=["a", "b", "c", "d"]))
    assert [(one.key, one.status) for one in results] == [
        ("a", "ok"),
        ("b", "not_found"),
        ("c", "bad_argument"),
        ("d", "ok"),
    ]
    assert isinstance(results[1], FailedExplanation)


def test_an_image_to_compare_with_that_cannot_be_read_is_refused_at_once() -> None:
    with pytest.raises(ImageError) as caught:
        explain_likeness([CAT], "missing.jpg")
    assert caught.value.code == "not_found"


def test_a_model_without_pooling_has_no_embedding() -> None:
    model = tessella.create_model("mixer_ti_p4_32", global_pool="").eval()
    with pytest.raises(UsageError, match="no embedding") as caught:
        explain_likeness([CAT], CAT, tessella.Predictor(model, name="m"))
    assert "logit" not in str(caught.value)


def test_files(result: LinkExplanation, tmp_path: Path) -> None:
    figure, arrays = result.save(tmp_path / "new")
    assert (figure.name, arrays.name) == ("cat.links.png", "cat.links.npz")
    assert figure.read_bytes() == result.figure()
    found = read_arrays(arrays)
    assert np.array_equal(found["links"], result.links.values)
    assert np.array_equal(found["map"], result.links.map_a)
    assert float(found["cosine"]) == result.links.cosine
    assert "agreement" not in found


def test_json(result: LinkExplanation) -> None:
    row = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert (row["key"], row["like"], row["exact"], row["agreement"]) == (CAT, COFFEE, True, None)
    assert np.array(row["map"]).shape == result.links.map_a.shape
    values = [link["value"] for link in row["links"]]
    assert values == sorted(values, reverse=True)
    assert all(0 <= place < 4 for link in row["links"] for place in (*link["a"], *link["b"]))


def test_links_that_are_measured_say_so() -> None:
    subject = Subject(tessella.load("crossvit_ti_dagger_p4_32.cifar10", engine="eager"))
    (found,) = explain_likeness(CAT, COFFEE, subject)
    assert isinstance(found, LinkExplanation)
    assert found.as_dict()["exact"] is False
    assert "not exact" in found.kind
    assert "the effect of each region" in found.kind
    assert f"{found.links.agreement:.2f}" in found.summary


def test_notebooks_show_both_images(result: LinkExplanation) -> None:
    html = result._repr_html_()
    assert "data:image/png;base64," in html
    assert f"cosine similarity {result.links.cosine:.4f}" in html  # with the digits of `tessella search`
