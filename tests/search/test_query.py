"""Searches in a run: compared with plain arithmetic, with filters, all kinds of queries, and sheets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest

import tessella
from tessella.bulk import RunSettings, read_rows, run
from tessella.errors import ImageError, UsageError
from tessella.predictor import Predictor
from tessella.search import query as search
from tessella.search import vector_files
from tessella.search.index import build_index, lance_errors
from tessella.search.query import Index, load_model, suggested_classes

from ..bulk.runs import Image, numbered, random_vectors, unit, write_run, write_shard

pytest.importorskip("lancedb")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CAT = str(EXAMPLES / "cat.jpg")


class Fake(Predictor):
    """A Predictor whose embedding of an image is the vector in its bytes."""

    name = "tiny"

    def __init__(self, fingerprint: str = "0123456789abcdef"):
        self.fingerprint = fingerprint

    def embed(self, images: Any) -> Any:
        return unit(np.frombuffer(images, np.float32))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 rows; ten copies of one vector under other keys, and near relatives of another."""
    vectors = random_vectors(600, 1)
    vectors[100:105] = vectors[340:345] = vectors[0]
    vectors[310:320] = vectors[7] + 0.05 * random_vectors(10, 3)
    run = write_run(tmp_path_factory.mktemp("planted") / "run", numbered(vectors))
    build_index(run)
    return run


@pytest.fixture(scope="module")
def index(planted: Path) -> Index:
    fake: Any = Fake()
    return Index(planted, fake)


def nearest(run: Path, query: Any, top: int, keep: Callable[[dict[str, Any]], bool] = lambda row: True) -> list[str]:
    """Return keys sorted by cosine in float64, then by key."""
    rows = [row for table in read_rows(run) for row in table.to_pylist() if row["status"] == "ok" and keep(row)]
    cosines = unit(np.stack([row["embedding"] for row in rows]).astype(np.float64)).astype(np.float64) @ unit(query)
    neighbors = sorted(zip((-cosines).round(6), (row["key"] for row in rows), strict=True))
    return [key for _, key in neighbors[:top]]


def keys(neighbors: list[search.Neighbor]) -> list[str]:
    return [neighbor.key for neighbor in neighbors]


def test_a_search_matches_plain_arithmetic(planted: Path, index: Index) -> None:
    for query in random_vectors(8, 5):
        for top in (1, 10):
            neighbors = index.search(query, top=top)
            assert keys(neighbors) == nearest(planted, query, top)
            assert [neighbor.score for neighbor in neighbors] == sorted(
                (neighbor.score for neighbor in neighbors), reverse=True
            )
    assert len(index.search(random_vectors(1, 5)[0], top=10_000)) == 600


def test_equal_scores_are_sorted_by_key(index: Index) -> None:
    copies = [f"{i:06d}.jpg" for i in (*range(100, 105), *range(340, 345))]
    neighbors = index.search("000000.jpg")
    assert keys(neighbors) == copies
    assert {neighbor.score for neighbor in neighbors} == {1.0}


@pytest.mark.parametrize("memory", [0, None])
def test_of_equal_scores_at_the_end_the_first_by_key_are_found(tmp_path: Path, memory: int | None) -> None:
    vectors = random_vectors(200, 1)
    vectors[1::2] = vectors[0]
    images = [Image(f"{199 - i:06d}.jpg", vector) for i, vector in enumerate(vectors)]  # keys in falling order
    build_index(write_run(tmp_path / "run", images))
    index = Index(tmp_path / "run", memory=memory)
    for where in (None, "bytes > 0"):
        assert keys(index.search(vectors[0], top=7, where=where)) == [f"{i:06d}.jpg" for i in range(0, 14, 2)]
    assert keys(index.search("000010.jpg", top=3)) == ["000000.jpg", "000002.jpg", "000004.jpg"]


def test_a_neighbor_has_the_fields_of_the_run(index: Index) -> None:
    query = index.query("000011.jpg")
    assert (query.row, query.name) == (11, "000011.jpg")
    (neighbor,) = index.search(query.vector, top=1)
    assert (neighbor.key, neighbor.row, neighbor.score, neighbor.label) == ("000011.jpg", 11, 1.0, "it's a horse")
    assert (neighbor.probability, neighbor.bytes, neighbor.width, neighbor.height) == (0.75, 1011, 640, 480)


def test_filters(planted: Path, index: Index) -> None:
    query = random_vectors(1, 5)[0]
    neighbors = index.search(query, top=20, where="bytes >= 1100 -- larger", label="it's a horse")
    expected = nearest(planted, query, 20, lambda row: row["top_label"][0] == "it's a horse" and row["bytes"] >= 1100)
    assert keys(neighbors) == expected
    assert index.search(query, where="key = '000005.jpg' OR key = '000007.jpg'", label="cat") == []
    with pytest.raises(UsageError, match="has no class 'hors'") as caught:
        index.search(query, label="hors")
    assert caught.value.hint == """classes include "it's a horse\""""


def test_the_classes_that_are_offered_for_an_unknown_one() -> None:
    classes = (
        "bathing cap",
        "that",
        "cowboy hat, ten-gallon hat",
        "Hat",
        "thatch",
        "hatchet",
        "top-hat",
        "chat",
        "Hat",
    )
    offered = ["cowboy hat, ten-gallon hat", "Hat", "top-hat", "that", "hatchet"]
    assert suggested_classes("hat", classes) == suggested_classes("HAT", classes) == offered
    assert suggested_classes("bathing cup", classes) == ["bathing cap"]  # similar
    for unlike in ("zebra", ""):
        assert suggested_classes(unlike, classes) == list(classes[:3])
    assert suggested_classes(".*", classes) == list(classes[:3])
    photographs = tessella.load().labels
    assert suggested_classes("hat", photographs)[0] == "cowboy hat, ten-gallon hat"
    assert all(re.search(r"\bcat\b", name) for name in suggested_classes("cat", photographs))


@pytest.mark.parametrize(
    "where",
    [
        "nope = 1",
        "bytes >",
        "",
        "bytes",
        "bytes = 'x'",
        "1=1; drop table rows",
        "CAST(key AS INT) = 1",
        "'",
        "1=1) OR (1=1",
        "true)",
        "(true",
        "true) --",
        "1=1 garbage",
        "1=1 \0",
        "1=1 /* open",
        "width/0 = 1",
        "width = ?",
        "width = $1",
        "width = :a",
        "label = '\udcff'",
        "(" * 300 + "1=1" + ")" * 300,
        "width+" * 1600 + "1 > 1",
        "NOT " * 30_000 + "true",
    ],
)
def test_a_bad_filter_is_a_usage_error(index: Index, where: str) -> None:
    with pytest.raises(UsageError) as caught:
        index.search(random_vectors(1, 5)[0], where=where)
    assert caught.value.code == "bad_argument"
    assert "probability" in caught.value.hint  # a column
    assert not any(word in str(caught.value).lower() for word in ("cargo", "lance", ".rs", "datafusion"))
    assert len(index.search(random_vectors(1, 5)[0], top=3)) == 3


def test_an_unknown_column_in_a_filter_is_named(index: Index) -> None:
    with pytest.raises(UsageError, match="there is no column 'widht'"):
        index.search(random_vectors(1, 5)[0], where="widht > 3")


def test_odd_keys_are_found(tmp_path: Path) -> None:
    odd = [
        "it's.jpg",
        "a'b''c.jpg",
        '"q".png',
        "tab\t.png",
        "bücher 猫.png",
        "x' OR key != '",
        "key:a",
        "%",
        "\udcff.jpg",
        "\\xff.jpg",
    ]
    run = write_run(
        tmp_path / "run", [Image(key, vector) for key, vector in zip(odd, random_vectors(10, 0), strict=True)]
    )
    build_index(run)
    index = Index(run)
    displayed = {neighbor.row: neighbor.key for neighbor in index.search(random_vectors(1, 1)[0], top=20)}
    assert (displayed[8], displayed[9]) == ("\\xff.jpg", "\\\\xff.jpg")  # one text belongs to one name
    for row, key in enumerate(odd):
        assert index.query(f"key:{displayed[row]}").row == row
        assert len(index.search(f"key:{displayed[row]}")) == 9
        if row != 9:  # which is what the one before is displayed as
            assert index.query(f"key:{key}").row == row
    for key in ("key:a\0b", "key:\ud800"):
        with pytest.raises(UsageError) as caught:
            index.query(key)
        assert caught.value.code == "not_found"


def test_a_panic_of_lancedb_becomes_a_coded_error() -> None:
    class RustPanic(BaseException):
        """As it comes from a future; no module has its name."""

    with (
        pytest.raises(UsageError, match="this cannot be read: LanceDB failed"),
        lance_errors("damaged_run", "this cannot be read", "a hint"),
    ):
        raise RustPanic("rust future panicked: unknown error")


@pytest.mark.parametrize("name", ["query.npy", "query.npz"])
def test_a_query_that_would_fill_the_memory_is_refused(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    facts = index.facts
    if name.endswith("z"):
        zeros = np.zeros((5000, facts["width"]), np.float32)
        np.savez_compressed(tmp_path / name, fingerprint=facts["fingerprint"], model=facts["model"], embeddings=zeros)
        assert (tmp_path / name).stat().st_size < 10_000
    else:
        np.save(tmp_path / name, random_vectors(5000, 5))
    monkeypatch.setattr(vector_files, "MAX_BYTES", 300_000)
    with pytest.raises(UsageError, match="the limit of a query is 300,000") as caught:
        index.search(tmp_path / name)
    assert caught.value.code == "bad_argument"


def test_a_condition_never_widens_a_label(index: Index) -> None:
    count = len(index.search(random_vectors(1, 5)[0], top=600, label="cat"))
    assert count == 200
    for where in ("1=1", "true OR true", "label = 'dog' OR 1=1", "1=1 -- ) OR (1=1", "'a' = 'a' /* ( */"):
        neighbors = index.search(random_vectors(1, 5)[0], top=600, label="cat", where=where)
        assert len(neighbors) == count
        assert {neighbor.label for neighbor in neighbors} == {"cat"}


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text + data


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff",
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (16,"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", bytes(64)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (16,), }", bytes(64)),
        npy("{'descr': 'nonsense', 'fortran_order': False, 'shape': (16,), }", bytes(64)),
        npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (16,), }", bytes(64)),
        npy("{'descr': '<c8', 'fortran_order': False, 'shape': (16,), }", bytes(128)),
        npy("{'descr': '<M8[s]', 'fortran_order': False, 'shape': (16,), }", bytes(128)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (), }", bytes(4)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1L,), }", bytes(4)),
        npy("[" * 9000),
        npy("(((", b"", 2),
        npy("\\", b"", 3),
        npy("{}", b"", 9),
        b"PK\x03\x04" + bytes(60),
    ],
    ids=range(18),
)
def test_a_damaged_file_of_vectors_is_refused(index: Index, tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"v{suffix}"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        index.search(path)
    assert caught.value.code == "bad_argument"
    if suffix == ".npz":
        with ZipFile(path, "w") as file:
            for name in ("fingerprint", "model", "embeddings"):
                file.writestr(f"{name}.npy", content)
        with pytest.raises(UsageError):
            index.search(path)


def test_a_query_that_is_not_a_regular_file(index: Index, tmp_path: Path) -> None:
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.npz")
    for name in ("folder.npy", "pipe.npz"):
        with pytest.raises(UsageError) as caught:
            index.search(tmp_path / name)
        assert caught.value.code == "special_file"


def test_embeddings_of_odd_shapes_are_refused(index: Index, tmp_path: Path) -> None:
    facts: dict[str, Any] = dict(fingerprint=index.facts["fingerprint"], model="tiny")
    for odd in (np.ones(16), np.ones((0, 16)), np.ones((2, 3, 16)), np.array([["x"] * 16]), np.ones((2, 16), bool)):
        np.savez(tmp_path / "v.npz", embeddings=odd, **facts)
        with pytest.raises(UsageError) as caught:
            index.search(tmp_path / "v.npz")
        assert caught.value.code == "bad_argument"


@pytest.mark.parametrize("top", [0, -1, 10**24, 2.5, True, "3"])
def test_odd_numbers_of_rows_are_refused(index: Index, top: Any) -> None:
    with pytest.raises(UsageError, match="top") as caught:
        index.search(np.ones(16), top=top)
    assert caught.value.code == "bad_argument"


def test_a_search_by_key_in_few_rows_needs_neither_pytorch_nor_lancedb(planted: Path) -> None:
    code = f"import sys; from tessella.search.query import Index; Index({str(planted)!r}).search('000003.jpg')\n"
    code += "sys.exit('torch' in sys.modules or 'lancedb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_mean_of_many_float16_embeddings_is_exact(index: Index, tmp_path: Path) -> None:
    """A sum in float16 stops growing when its steps get smaller than its rounding."""
    rows = np.full((9000, 16), 0.5, np.float16)
    rows[4500:] = np.where(np.arange(16) < 8, 8, 0.25)  # after the sum has stopped growing
    np.savez(tmp_path / "v.npz", embeddings=rows, fingerprint=index.facts["fingerprint"], model="tiny")
    expected = rows.astype(np.float64).mean(0)
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(index.query(tmp_path / "v.npz").vector, expected, rtol=1e-5)


def test_queries_of_every_kind(planted: Path, index: Index, tmp_path: Path) -> None:
    image, array = random_vectors(2, 8)
    np.save(tmp_path / "v.npy", array)
    facts: dict[str, Any] = dict(fingerprint=index.facts["fingerprint"], model="tiny")
    np.savez(tmp_path / "v.npz", embeddings=np.stack([array, np.full(16, np.nan)]), **facts)
    expected = nearest(planted, array, 5)
    for query in (array, array.astype(np.float64) * 7, str(tmp_path / "v.npy"), tmp_path / "v.npz"):
        assert keys(index.search(query, top=5)) == expected
    assert keys(index.search(image.tobytes(), top=5)) == nearest(planted, image, 5)
    query_vector = index.query("000007.jpg").vector
    others = nearest(planted, query_vector, 6)
    assert others[0] == "000007.jpg"
    assert keys(index.search("key:000007.jpg", top=5)) == keys(index.search(["000007.jpg"], top=5)) == others[1:]
    assert set(others[1:]) <= {f"{i:06d}.jpg" for i in range(310, 320)}  # its planted relatives
    mean = (unit(image) + unit(array) + query_vector) / 3
    neighbors = index.search([image.tobytes(), array, "000007.jpg"], top=5)
    assert keys(neighbors) == nearest(planted, mean, 5, lambda row: row["key"] != "000007.jpg")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        (np.zeros(16), "bad_argument"),
        (np.full(16, np.nan), "bad_argument"),
        (np.ones(17), "bad_argument"),
        (np.array(["x"] * 16), "bad_argument"),
        ([], "bad_argument"),
        ([np.ones(16), -np.ones(16)], "bad_argument"),
        ("none.npy", "not_found"),
        ("key:none", "not_found"),
        ("{tmp}/cat.npz", "bad_argument"),
    ],
)
def test_an_impossible_query_is_refused(index: Index, query: Any, code: str, tmp_path: Path) -> None:
    shutil.copy(CAT, tmp_path / "cat.npz")
    with pytest.raises(UsageError) as caught:
        index.search(query.format(tmp=tmp_path) if isinstance(query, str) else query)
    assert caught.value.code == code
    with pytest.raises(UsageError):
        index.search(np.ones(16), top=0)


def test_embeddings_of_another_model_are_refused(planted: Path, index: Index, tmp_path: Path) -> None:
    other: Any = Fake("f" * 16)
    np.savez(tmp_path / "v.npz", embeddings=np.ones((1, 16)), fingerprint="f" * 16, model="other")
    for refused in (lambda: Index(planted, other), lambda: index.search(tmp_path / "v.npz")):
        with pytest.raises(UsageError, match=r"0123456789abcdef.*ffffffffffffffff") as caught:
            refused()
        assert caught.value.code == "changed_run"
        model = index.facts["model"]
        assert caught.value.hint.endswith(f"the model: -m {model}, in Python tessella.load({model!r})")


def test_an_opened_index_is_not_affected_by_an_update(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", numbered(random_vectors(50, 0)))
    build_index(run)
    counts: list[int] = []
    before = Index(run)
    write_shard(run, 0, numbered(random_vectors(70, 1)))
    build_index(run, log=lambda text: counts.append(len(Index(run).search(np.ones(16), top=100))))
    assert set(counts) == {50}
    assert len(Index(run).search(np.ones(16), top=100)) == 70
    assert len(before.search(np.ones(16), top=100)) == 50  # its rows are in memory
    with pytest.raises(UsageError, match="tessella index") as caught:
        before.search(np.ones(16), where="bytes > 0")
    assert caught.value.code == "damaged_run"


def test_searches_with_lancedb_and_in_memory_agree(
    planted: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "IN_MEMORY_ROWS", 0)
    large = Index(planted)
    assert (large._memory, index._memory is None) == (None, False)
    for query in [*random_vectors(4, 5), "000007.jpg", "000000.jpg"]:
        for label in (None, "dog"):
            assert large.search(query, top=20, label=label) == index.search(query, top=20, label=label)


def test_an_index_is_searched_without_the_shards(planted: Path, index: Index, tmp_path: Path) -> None:
    run = Path(shutil.copytree(planted, tmp_path / "run"))
    shard = run / "shards" / "shard-00000002.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    index_without_shard = Index(run)
    assert index_without_shard._memory is None
    assert index_without_shard.search("000007.jpg") == index.search("000007.jpg")


# --- a real run -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example images through the built-in model: two as files, one of these in an archive, too."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("cat.jpg", "coffee.jpg"):
        shutil.copy(EXAMPLES / name, folder / name)
    with tarfile.open(folder / "some.tar", "w") as archive:
        archive.add(CAT, "in/<b>cat</b>.jpg")
    predictor = tessella.load(engine="eager", device="cpu", batch_size=4)
    run([str(folder)], folder / "run", predictor, RunSettings(processes=1))
    build_index(folder / "run")
    return folder


def test_the_runs_own_model_embeds_a_query(photographs: Path) -> None:
    index = Index(photographs / "run")
    neighbors = index.search(CAT, top=2)
    assert [Path(neighbor.key).name for neighbor in neighbors] == ["cat.jpg", "b>.jpg"]
    assert [neighbor.score for neighbor in neighbors] == pytest.approx([1, 1], abs=1e-5)
    with pytest.raises(ImageError):
        index.search("no such image.jpg")
    fast = index.facts | dict(fingerprint="f" * 16)
    with pytest.raises(UsageError, match="ffffffffffffffff"):
        load_model(fast)


@pytest.mark.parametrize("suffix", [".html", ".png"])
def test_sheets_show_queries_and_neighbors(photographs: Path, tmp_path: Path, suffix: str) -> None:
    index = Index(photographs / "run")
    coffee = str(photographs / "coffee.jpg")
    queries = [index.query(CAT), index.query(coffee), index.query(np.ones(index.facts["width"]))]
    neighbors = index.search(queries)
    path = tmp_path / f"sheet{suffix}"
    index.sheet(path, queries, neighbors)
    again = tmp_path / f"again{suffix}"
    index.sheet(again, queries, neighbors)
    assert path.read_bytes() == again.read_bytes()
    if suffix == ".png":
        assert path.read_bytes().startswith(b"\x89PNG")
        return
    page = Page()
    page.feed(path.read_text())
    pictures = [value or "" for name, value in page.attributes if name == "src"]
    assert len(pictures) == 2 + len(neighbors)  # a vector has none
    assert all(picture.startswith("data:image/png;base64,iVBOR") for picture in pictures)
    assert page.tags <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "main", "figure", "img", "br"),
        "figcaption",
    }
    assert "no picture" not in page.text
    positions = [page.text.index(text) for text in ("query", "1. ", "2. ", "some.tar::in/<b>cat</b>.jpg")]
    assert positions == sorted(positions)


class Page(HTMLParser):
    """Collects what a browser would show of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_missing_picture_is_replaced_by_its_error(photographs: Path, tmp_path: Path) -> None:
    shutil.copytree(photographs, tmp_path / "photographs")
    index = Index(photographs / "run")
    neighbors = index.search(CAT)
    (photographs / "coffee.jpg").rename(tmp_path / "moved.jpg")
    try:
        index.sheet(tmp_path / "sheet.html", [], neighbors)
    finally:
        (tmp_path / "moved.jpg").rename(photographs / "coffee.jpg")
    assert (tmp_path / "sheet.html").read_text().count("no picture: not_found") == 1
    with pytest.raises(UsageError, match=r"sheet\.pdf"):
        index.sheet(tmp_path / "sheet.pdf", [], neighbors)


# --- several positives and negatives ----------------------------------------------------------------------------------


def test_negative_queries_are_subtracted_with_a_quarter_of_their_weight(planted: Path, index: Index) -> None:
    a, b, c, d = unit(random_vectors(4, 11))
    expected = (a + b) / 2 - 0.25 * (c + d) / 2
    assert keys(index.search([a, b], negative=[c, d], top=20)) == nearest(planted, expected, 20)


def test_negative_rows_are_not_among_the_results(index: Index) -> None:
    rows = [index.row_query(row) for row in (7, 310)]
    found = index.search(rows[0], negative=rows[1:], top=600)
    assert len(found) == 598
    assert not {7, 310} & {neighbor.row for neighbor in found}


@pytest.mark.parametrize("among", [np.ones(599, bool), np.ones(600, np.int8), np.ones((600, 1), bool)])
def test_a_mask_of_another_shape_is_refused(index: Index, among: Any) -> None:
    with pytest.raises(UsageError) as caught:
        index.search(random_vectors(1, 0)[0], among=among)
    assert caught.value.code == "bad_argument"


def test_no_row_is_found_among_none(index: Index) -> None:
    assert index.search(random_vectors(1, 0)[0], among=np.zeros(600, bool)) == []
