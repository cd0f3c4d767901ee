"""Why results of a search are similar: parts of the score, links with every result, and files that show them."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessella
from tessella.bulk import RunSettings, run
from tessella.data.decode import decode
from tessella.errors import ImageError, OutputError, UsageError
from tessella.explain.links import link_images
from tessella.explain.neighbors import (
    NeighborLinks,
    QueryPart,
    check_explainable,
    explain_neighbors,
    write_neighbors,
)
from tessella.predictor import Predictor
from tessella.search.index import build_index
from tessella.search.query import Index, Neighbor

pytest.importorskip("lancedb")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ("astronaut.jpg", "cat.jpg", "coffee.jpg", "rocket.jpg")
CIFAR = "convmixer_256_8_ks3_p4.cifar10"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tessella.load(CIFAR, engine="eager", device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def original(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four photographs and an indexed run of them."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "images").mkdir()
    for name in NAMES:
        shutil.copy2(EXAMPLES / name, folder / "images" / name)
    run([str(folder / "images")], folder / "run", predictor, RunSettings(processes=1))
    build_index(folder / "run")
    return folder


@pytest.fixture
def photographs(original: Path) -> Any:
    """The same folder; photographs that a test removed or changed are put back."""
    yield original
    for name in NAMES:
        shutil.copy2(EXAMPLES / name, original / "images" / name)


@pytest.fixture
def index(original: Path, predictor: Predictor) -> Index:
    return Index(original / "run", predictor)


def key(index: Index, name: str) -> str:
    """The key of the row of a photograph, as a query."""
    return f"key:{index.out.parent / 'images' / name}"


def explain(index: Index, queries: list[Any], negative: list[Any] | None = None, top: int = 3) -> list[NeighborLinks]:
    loaded, against = ([index.query(item) for item in items] for items in (queries, negative or []))
    neighbors = index.search(loaded, negative=against, top=top)
    return list(explain_neighbors(index, loaded, neighbors, negative=against))


# --- parts of the score -----------------------------------------------------------------------------------------------


def test_the_links_of_an_image_sum_to_the_score(index: Index) -> None:
    explained = explain(index, [str(EXAMPLES / "cat.jpg")], top=4)
    assert explained[0].neighbor.key.endswith("cat.jpg")
    for one in explained:
        (part,) = one.parts
        assert part.part == pytest.approx(one.neighbor.score, abs=2e-6)
        assert part.links is not None
        assert part.links.exact
        assert part.links.values.sum() == pytest.approx(one.neighbor.score, abs=2e-3)  # stored as float16
        assert one.error is None
        assert "sum of its links" in one.about


def test_links_are_those_of_the_two_images(index: Index) -> None:
    (one, *_) = explain(index, [key(index, "cat.jpg")])
    (part,) = one.parts
    assert part.image is not None
    assert one.image is not None
    assert part.links is not None
    expected = link_images(index.predictor.model, part.image.x, one.image.x)
    np.testing.assert_allclose(part.links.values, expected.values, atol=1e-7)
    assert one.image.key == one.neighbor.key


@pytest.mark.parametrize(
    ("queries", "negative"),
    [
        (["cat.jpg", "coffee.jpg"], []),
        (["cat.jpg"], ["rocket.jpg"]),
        (["cat.jpg", "coffee.jpg"], ["rocket.jpg", "astronaut.jpg"]),
    ],
)
def test_parts_of_several_queries_sum_to_the_score(index: Index, queries: list[str], negative: list[str]) -> None:
    paths, against = ([str(EXAMPLES / name) for name in names] for names in (queries, negative))
    explained = explain(index, paths, against, top=4)
    assert len(explained) == 4
    for one in explained:
        assert sum(part.part for part in one.parts) == pytest.approx(one.neighbor.score, abs=2e-6)
        assert [part.negative for part in one.parts] == [False] * len(queries) + [True] * len(negative)
        assert [part.name for part in one.parts] == [*paths, *against]
        assert all(part.links is not None for part in one.parts)


def test_a_negative_query_counts_against_similar_results(index: Index) -> None:
    explained = explain(index, [str(EXAMPLES / "cat.jpg")], [str(EXAMPLES / "rocket.jpg")], top=4)
    (same,) = (one for one in explained if one.neighbor.key.endswith("rocket.jpg"))
    _, against = same.parts
    assert against.part < 0
    assert "(negative): \N{MINUS SIGN}0." in against.caption
    assert against.links is not None
    assert against.links.cosine == pytest.approx(1, abs=1e-3)


def test_a_vector_has_a_part_of_the_score_but_no_links(index: Index) -> None:
    vector = np.random.default_rng(0).normal(size=256).astype(np.float32)
    explained = explain(index, [vector, key(index, "cat.jpg")])
    for one in explained:
        by_vector, by_image = one.parts
        assert (by_vector.links, by_vector.image, by_vector.error) == (None, None, None)
        assert by_image.links is not None
        assert by_vector.part + by_image.part == pytest.approx(one.neighbor.score, abs=2e-6)
        assert "a vector" in by_vector.caption


def test_class_token_models_measure_links_by_masking(tmp_path: Path) -> None:
    predictor = tessella.load("crossvit_ti_dagger_p4_32.cifar10", engine="eager", device="cpu", batch_size=4)
    run(
        [str(EXAMPLES / "cat.jpg"), str(EXAMPLES / "coffee.jpg")], tmp_path / "run", predictor, RunSettings(processes=1)
    )
    build_index(tmp_path / "run")
    index = Index(tmp_path / "run", predictor)
    (one,) = explain(index, [str(EXAMPLES / "cat.jpg")], top=1)
    (part,) = one.parts
    assert part.links is not None
    assert not part.links.exact
    assert "class tokens" in one.about
    assert "masking" in one.about
    write_neighbors(tmp_path / "why.html", [one], "why")
    assert "class tokens" in (tmp_path / "why.html").read_text()


# --- images that cannot be read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["gone", "changed", "broken"])
def test_a_result_without_an_image_does_not_fail_the_others(photographs: Path, index: Index, damage: str) -> None:
    damaged = photographs / "images" / "coffee.jpg"
    loaded = index.query(key(index, "cat.jpg"))
    neighbors = index.search(loaded, top=3)
    if damage == "gone":
        damaged.unlink()
    else:
        data = (EXAMPLES / "coffee.jpg").read_bytes()
        damaged.write_bytes((EXAMPLES / "rocket.jpg").read_bytes() if damage == "changed" else data[:2000])
    explained = list(explain_neighbors(index, [loaded], neighbors))
    assert [one.neighbor for one in explained] == neighbors
    failed = [one for one in explained if one.error is not None]
    assert [Path(one.neighbor.key).name for one in failed] == ["coffee.jpg"]
    assert failed[0].error is not None
    assert failed[0].error.code == ("not_found" if damage == "gone" else "changed_input")
    assert failed[0].image is None
    assert failed[0].parts[0].links is None
    assert failed[0].parts[0].part == pytest.approx(failed[0].neighbor.score, abs=2e-6)
    assert all(one.parts[0].links is not None for one in explained if one.error is None)


def test_a_query_without_an_image_does_not_fail_the_others(photographs: Path, index: Index) -> None:
    (photographs / "images" / "coffee.jpg").unlink()
    explained = explain(index, [key(index, "coffee.jpg"), key(index, "cat.jpg")], top=2)
    for one in explained:
        gone, there = one.parts
        assert gone.error is not None
        assert gone.error.code == "not_found"
        assert gone.links is None
        assert "no image: not_found" in gone.caption
        assert there.links is not None


def test_no_query_with_an_image_is_left(photographs: Path, index: Index) -> None:
    (photographs / "images" / "coffee.jpg").unlink()
    with pytest.raises(ImageError) as caught:
        explain(index, [key(index, "coffee.jpg")])
    assert caught.value.code == "not_found"


def test_vectors_alone_cannot_be_explained(index: Index) -> None:
    vector = index.query(np.ones(256))
    image = index.query(key(index, "cat.jpg"))
    with pytest.raises(UsageError, match="no query is an image") as caught:
        check_explainable(index, [vector])
    assert caught.value.code == "bad_argument"
    with pytest.raises(UsageError):
        next(explain_neighbors(index, [vector], [], negative=[image]))  # only what results should not resemble
    check_explainable(index, [vector, image])


def test_no_results(index: Index) -> None:
    assert list(explain_neighbors(index, [index.query(key(index, "cat.jpg"))], [])) == []


# --- files ------------------------------------------------------------------------------------------------------------


class Parser(HTMLParser):
    """The texts, images and other addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str | None] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.images += [dict(attrs)] if tag == "img" else []
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parsed(path: Path) -> Parser:
    parser = Parser()
    parser.feed(path.read_text())
    return parser


def test_a_page_shows_all_pairs_and_needs_nothing_else(index: Index, tmp_path: Path) -> None:
    explained = explain(index, [key(index, "cat.jpg"), np.ones(256)], [key(index, "rocket.jpg")], top=2)
    write_neighbors(tmp_path / "why.html", explained, "Why <these>")
    page = parsed(tmp_path / "why.html")
    assert len(page.images) == 2 * 2  # two results, with the two queries that are images
    for address in page.addresses:
        assert address is not None
        assert address.startswith("data:image/png;base64,")
    assert all("links between" in (image["alt"] or "") for image in page.images)
    text = "".join(page.texts)
    assert "Why <these>" in text
    assert "(negative)" in text
    assert "a vector" in text
    assert page.tags.count("section") == 2
    assert "script" not in page.tags
    assert "default-src 'none'" in (tmp_path / "why.html").read_text()


def test_pictures_have_a_row_for_every_pair(index: Index, tmp_path: Path) -> None:
    one = explain(index, [key(index, "cat.jpg")], top=1)
    three = explain(index, [key(index, "cat.jpg")], top=3)
    heights = []
    for explained in (one, three):
        write_neighbors(tmp_path / "why.png", explained, "why")
        heights.append(decode((tmp_path / "why.png").read_bytes()).shape[0])
    assert heights[1] == pytest.approx(3 * heights[0], abs=2)


def result(name: str, error: ImageError | None = None, **part: Any) -> NeighborLinks:
    neighbor = Neighbor(name, 0.5, 0, name, "", 1, 1, 1, None, None)
    return NeighborLinks(neighbor, (QueryPart(name, 0.5, False, **part),), None, error, "about")


@pytest.mark.parametrize("suffix", [".html", ".png"])
def test_results_that_all_failed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"why{suffix}"
    write_neighbors(path, [result("a.jpg", ImageError("not_found", "gone"))], "why")
    assert path.stat().st_size > 0
    if suffix == ".html":
        assert "no image: not_found" in "".join(parsed(path).texts)


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "$x$", "名前.jpg", "\udcff.jpg", "line\nbreak", "a" * 400]
)
@pytest.mark.parametrize("suffix", [".html", ".png"])
def test_names_of_all_kinds(tmp_path: Path, name: str, suffix: str) -> None:
    write_neighbors(tmp_path / f"why{suffix}", [result(name)], name)
    if suffix == ".html":
        assert "script" not in parsed(tmp_path / "why.html").tags


def test_wrong_outputs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(".png or .html")):
        write_neighbors(tmp_path / "why.txt", [result("a.jpg")], "why")
    with pytest.raises((UsageError, OutputError)):
        write_neighbors(tmp_path / "absent" / "why.png", [result("a.jpg")], "why")
