"""Heads: the solution is that of the loss in the docstring, files are exact and safe, and `classify` uses them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tessella
from tessella.bulk import run as run_images
from tessella.cli.program import cli
from tessella.errors import TessellaError, UsageError
from tessella.search import Head, Index, build_index, list_heads
from tessella.search.heads import SEAL_KEY, STRENGTH, background_rows, check_head_name, fit_linear, head_path, sigmoid
from tessella.storage import sealed_bytes
from tessella.weights.catalogue import default_model

from ..bulk.runs import drop_shard, numbered, random_vectors, unit, write_run

pytest.importorskip("lancedb")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """240 rows around three centers, by turns; row 7 is an error."""
    vectors = random_vectors(3, 0)[np.arange(240) % 3] + 0.6 * random_vectors(240, 1)
    images = numbered(vectors)
    images[7].error = "corrupt_image"
    run = write_run(tmp_path / "run", images)
    build_index(run)
    return run


@pytest.fixture
def index(run: Path) -> Index:
    return Index(run)


def code_of(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(TessellaError) as caught:
        call(*arguments, **options)
    return caught.value.code


# --- fitting ----------------------------------------------------------------------------------------------------------


def reference(x: Any, target: Any, weight: Any) -> Any:
    """Minimize the loss by plain gradient descent in float64, with the bias as the last entry."""
    columns = np.hstack([x.astype(np.float64), np.ones((len(x), 1))])
    penalty = np.append(np.full(x.shape[1], STRENGTH), 0)
    solution = np.zeros(x.shape[1] + 1)
    for _ in range(200_000):
        gradient = columns.T @ (weight * (1 / (1 + np.exp(-columns @ solution)) - target)) + penalty * solution
        solution -= 2 * gradient
        if np.abs(gradient).max() < 1e-9:
            break
    return solution


@pytest.mark.parametrize(("yes", "no", "background"), [(3, 4, 30), (1, 0, 20), (5, 2, 0), (2, 2, 2)])
def test_the_weights_minimize_the_loss(yes: int, no: int, background: int) -> None:
    rows = unit(random_vectors(yes + no + background, 4, 8))
    parts = rows[:yes], rows[yes : yes + no], rows[yes + no :]
    fit = fit_linear(*parts)
    share_of_background = 0.9 if no and background else float(background > 0)
    weight = np.concatenate(
        [
            np.full(yes, 0.5 / yes),
            np.full(no, 0.5 * (1 - share_of_background) / max(no, 1)),
            np.full(background, 0.5 * share_of_background / max(background, 1)),
        ]
    )
    assert weight.sum() == pytest.approx(1)
    expected = reference(rows, np.arange(len(rows)) < yes, weight)
    np.testing.assert_allclose(np.append(fit.weights, fit.bias), expected, atol=2e-4)


def test_equal_images_on_both_sides_do_no_harm() -> None:
    same = unit(random_vectors(1, 0))
    fit = fit_linear(same, same, same[:0])
    assert not fit.weights.any()
    assert fit.bias == pytest.approx(0, abs=1e-9)
    assert not fit.separable


def test_separable_is_about_the_marked_images() -> None:
    rows = unit(random_vectors(10, 2))
    assert fit_linear(rows[:5], rows[5:], rows[:0]).separable
    assert not fit_linear(rows[:5], rows[:1], rows[5:]).separable
    assert fit_linear(rows[:5], rows[:0], rows[5:]).separable


def test_a_head_finds_the_images_of_its_class(index: Index) -> None:
    head = Head.fit(index, "third", [2, 5, 8], [0, 1, 3])
    ranked = head.rank(index, top=300)
    assert len(ranked) == 239
    assert sum(row.row % 3 == 2 for row in ranked[:80]) >= 78
    assert {2, 5, 8} <= {row.row for row in ranked[:80]}
    assert [row.score for row in ranked] == sorted((row.score for row in ranked), reverse=True)
    assert head.separable
    assert head.background == 239 - 6
    assert [mark.key for mark in head.yes] == ["000002.jpg", "000005.jpg", "000008.jpg"]


def test_ranked_scores_are_those_of_the_vectors(index: Index) -> None:
    head = Head.fit(index, "third", [2, 5, 8], [0, 1, 3])
    ranked = head.rank(index, top=239)
    scores = head.score(index.vectors([row.row for row in ranked]))
    np.testing.assert_allclose([row.score for row in ranked], scores, atol=2e-6)
    logits = index.vectors([0]).astype(np.float64) @ head.weights + head.bias
    np.testing.assert_allclose(head.score(index.vectors([0])), 1 / (1 + np.exp(-logits)), rtol=1e-6)


def test_equal_marks_in_any_order_give_the_same_head(index: Index) -> None:
    heads = [Head.fit(index, "a", *marks) for marks in (([2, 5], [1, 0]), ([5, 2, 5], [0, 1, 0]))]
    assert heads[0].weights.tobytes() == heads[1].weights.tobytes()
    assert heads[0].bias == heads[1].bias
    assert heads[0].yes == heads[1].yes


def test_a_filter_limits_the_ranking(index: Index) -> None:
    head = Head.fit(index, "a", [2])
    among = np.zeros(240, bool)
    among[[7, 10, 20]] = True
    assert {row.row for row in head.rank(index, among=among)} == {10, 20}  # row 7 is an error


@pytest.mark.parametrize(
    ("yes", "no", "code"),
    [
        ([], [1], "bad_argument"),
        ([1], [1], "bad_argument"),
        ([7], [], "not_found"),
        ([1], [7], "not_found"),
        ([240], [], "not_found"),
        ([-1], [], "not_found"),
        (range(501), [], "bad_argument"),
        (["x"], [], "bad_argument"),
        ([10**30], [], "bad_argument"),
    ],
)
def test_marks_that_cannot_be_used(index: Index, yes: Any, no: Any, code: str) -> None:
    assert code_of(Head.fit, index, "a", list(yes), list(no)) == code


def test_a_run_of_one_image_has_nothing_to_compare_with(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", numbered(random_vectors(1, 0)))
    build_index(run)
    assert code_of(Head.fit, Index(run), "a", [0]) == "bad_argument"


def test_the_background_is_spread_over_the_index(index: Index) -> None:
    rows = background_rows(index, [0, 5])
    assert len(rows) == 237
    assert not {0, 5, 7} & {*rows.tolist()}


def test_sigmoid_does_not_overflow() -> None:
    logits = np.array([-1e4, -1, 0, 1, 1e4], np.float32)
    np.testing.assert_allclose(sigmoid(logits), [0, 0.26894143, 0.5, 0.7310586, 1], rtol=1e-6)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_saved_head_is_read_exactly(run: Path, index: Index) -> None:
    head = Head.fit(index, "red shoes", [2, 5, 8], [0])
    path = head.save(run)
    assert path == run / "heads" / "red shoes.json"
    assert list_heads(run) == ["red shoes"]
    for where in (path, str(path), f"{run}:red shoes"):
        again = Head.load(where)
        assert again.weights.tobytes() == head.weights.tobytes()
        assert again.weights.dtype == np.float32
        assert again == Head(**vars(again))
        for name in ("bias", "yes", "no", "name", "fingerprint", "model", "background", "separable"):
            assert getattr(again, name) == getattr(head, name)
    assert json.loads(path.read_text())["yes"][0] == [2, "000002.jpg", head.yes[0].sha256]


def test_a_head_is_not_overwritten_by_accident(run: Path, index: Index) -> None:
    Head.fit(index, "a", [2]).save(run)
    before = head_path(run, "a").read_bytes()
    other = Head.fit(index, "a", [1])
    assert code_of(other.save, run) == "exists"
    assert head_path(run, "a").read_bytes() == before
    other.save(run, replace=True)
    assert Head.load(f"{run}:a").yes[0].row == 1


def test_only_one_of_many_writers_wins(run: Path, index: Index) -> None:
    heads = [Head.fit(index, "a", [row]) for row in range(6)]
    start, codes = threading.Barrier(6), []

    def save(head: Head) -> None:
        start.wait()
        try:
            head.save(run)
            codes.append("saved")
        except UsageError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=save, args=(head,)) for head in heads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes.count("saved") == 1
    assert {*codes} <= {"saved", "exists", "busy"}


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "a/b", "a\\b", "a:b", "/etc/passwd", "a\0b", "a\nb", " a", "a ", ".hidden", "a.", "con",
     "NUL.txt", "com1", "x" * 65, "a*b", 'a"b', "a<b", "~", "\ud800", "a\u202eb", "-a"],
)  # fmt: skip
def test_names_that_are_no_safe_file_names(name: str, run: Path, index: Index) -> None:
    assert code_of(check_head_name, name) == "bad_argument"
    assert code_of(Head.fit, index, name, [2]) == "bad_argument"
    assert code_of(head_path, run, name) == "bad_argument"
    assert not (run / "heads").exists()


@pytest.mark.parametrize(
    "name", ["hat", "red shoes", "T-Shirt 2", "a.b", "Stühle", "椅子", "it's", "a & b", "c++", "x" * 64]
)
def test_names_that_may_be_used(name: str) -> None:
    assert check_head_name(name) == name


def test_equal_names_in_other_normal_forms_are_equal() -> None:
    assert check_head_name("u\u0308ber") == check_head_name("\u00fcber")


def test_damaged_files_and_files_that_are_no_heads(run: Path, index: Index, tmp_path: Path) -> None:
    path = Head.fit(index, "a", [2]).save(run)
    text = path.read_text()
    for change in (
        text.replace('"bias": ', '"bias": 1'),
        text[:100],
        "{}",
        "[]",
        "[" * 100_000,
        "\xff",
        json.dumps(dict(weights=[1])),
    ):
        path.write_text(change)
        assert code_of(Head.load, path) == "bad_format"
    assert code_of(Head.load, tmp_path / "absent.json") == "not_found"
    assert code_of(Head.load, tmp_path) == "not_found"
    assert code_of(Head.load, f"{tmp_path}:a") == "not_found"
    with pytest.raises(UsageError, match="it has 'a'"):
        Head.load(f"{run}:b")
    path.unlink()
    with pytest.raises(UsageError, match=r"has no head 'a' .*teach one: tessella serve --index"):
        Head.load(f"{run}:a")


def test_sealed_heads_of_the_wrong_kind_are_refused(run: Path, index: Index) -> None:
    """Their hashes are right, so the files are not damaged: they were not written by this package."""
    path = Head.fit(index, "a", [2], [3]).save(run)
    values = json.loads(path.read_text())
    values.pop(SEAL_KEY)
    changes: tuple[dict[str, Any], ...] = (
        dict(weights=[10**400] * 16),
        dict(weights=[1e300] * 16),
        dict(weights=["1"] * 16),
        dict(weights=[]),
        dict(bias=[1]),
        dict(bias=True),
        dict(bias=float("nan")),
        dict(name=5),
        dict(name="\x1b]0;x\x07"),
        dict(name="../../a"),
        dict(model=[1]),
        dict(yes=[["a", 5, None]]),
        dict(background="many"),
        dict(separable="no"),
    )
    for changed in changes:
        path.write_bytes(sealed_bytes(values | changed, SEAL_KEY))
        assert code_of(Head.load, path) == "bad_format", changed
    path.write_bytes(sealed_bytes(values, SEAL_KEY))
    assert Head.load(path).name == "a"


def test_a_head_survives_updates_and_repairs_of_the_run(run: Path, index: Index) -> None:
    Head.fit(index, "a", [2]).save(run)
    drop_shard(run, 2)
    build_index(run)
    assert len(Head.load(f"{run}:a").rank(Index(run), top=300)) == 199


def test_a_head_of_another_model_is_refused(index: Index, tmp_path: Path) -> None:
    head = Head.fit(index, "a", [2])
    other = write_run(tmp_path / "other", numbered(random_vectors(5, 0)), fingerprint="f" * 16, model="large")
    build_index(other)
    with pytest.raises(UsageError) as caught:
        head.rank(Index(other))
    assert caught.value.code == "changed_run"
    assert "belongs to tiny" in caught.value.message
    assert "not to large" in caught.value.message
    assert code_of(head.score, np.zeros((1, 3), np.float32)) == "bad_argument"
    assert code_of(head.score, np.zeros(16, np.float32)) == "bad_argument"


# --- classify ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the examples with the default model, with a head for the first of them."""
    out = tmp_path_factory.mktemp("photographs") / "run"
    run_images(str(EXAMPLES), out, tessella.load(default_model("embed"), precision="float32"))
    build_index(out)
    index = Index(out)
    first, *others = index.columns.rows.tolist()
    Head.fit(index, "mine", [first], others[:2]).save(out)
    return out


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(cli, [*arguments])


def test_classify_prints_the_probability_of_the_class(photographs: Path) -> None:
    index = Index(photographs)
    first = index.neighbors(index.columns.rows[:1])[0]
    path = str(EXAMPLES / Path(first.key).name)
    result = invoke("classify", path, "--head", f"{photographs}:mine", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    (best,) = record["top"]
    assert (best["index"], best["label"]) == (0, "mine")
    expected = Head.load(f"{photographs}:mine").score(tessella.load(index.facts["model"]).embed(path)[None])[0]
    assert best["probability"] == pytest.approx(float(expected), abs=1e-4)
    assert "embedding" not in record
    text = invoke("classify", path, "--head", str(head_path(photographs, "mine"))).stdout
    assert text.splitlines()[1] == f"  {100 * best['probability']:5.1f} %  mine"
    table = invoke("classify", path, str(EXAMPLES / "absent.jpg"), "--head", f"{photographs}:mine", "--csv").stdout
    assert table.splitlines()[0] == "key,status,message,index1,label1,probability1"
    assert len(table.splitlines()) == 3


@pytest.mark.parametrize(
    "option",
    [
        ["--top", "2"],
        ["--precision", "int8"],
        ["--policy", "timm"],
        ["--batch-size", "4"],
        ["--server", "http://localhost:1"],
    ],
)
def test_options_that_the_head_determines(photographs: Path, option: list[str]) -> None:
    result = invoke("classify", "x.jpg", "--head", f"{photographs}:mine", *option)
    assert isinstance(result.exception, UsageError)
    assert option[0] in result.exception.message


def test_classify_refuses_another_model(photographs: Path) -> None:
    image = str(next(EXAMPLES.glob("*.jpg")))
    result = invoke("classify", image, "--head", f"{photographs}:mine", "-m", "convmixer_256_8_ks3_p4.cifar10")
    assert isinstance(result.exception, UsageError)
    assert result.exception.code == "changed_run"


# --- size -------------------------------------------------------------------------------------------------------------

MILLION = """
import time
from pathlib import Path
import numpy as np, pyarrow as pa
from tessella.search import Index, Head
from tessella.search.columns import Columns
rows, width = 1_000_000, 384
vectors = np.random.default_rng(0).integers(-99, 99, (rows, width), np.int8).astype(np.float16)
index = object.__new__(Index)
place = pa.array(np.arange(rows))
text = pa.array(["x"]).take(pa.array(np.zeros(rows, np.int64)))
index.facts = dict(rows=rows, width=width, labels=[], fingerprint="f", model="m")
index.out, index.rows, index._approximate = Path("run"), rows, None
index._memory = pa.table(dict(
    key=place.cast(pa.string()), row=place, source=text, sha256=text, bytes=place,
    width=place.cast(pa.int32()), height=place.cast(pa.int32()), label=text,
    probability=pa.array(np.ones(rows, np.float32)), _rowid=place,
    vector=pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width)))
index.columns
del vectors
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = peak()
times = []
for _ in range(3):
    start = time.perf_counter()
    head = Head.fit(index, "a", [1, 2, 3], [4, 5, 6])
    ranked = head.rank(index, top=50)
    times.append(time.perf_counter() - start)
assert len(ranked) == 50 and {1, 2, 3} <= {row.row for row in ranked}
print(min(times), peak() - before)
"""


@pytest.mark.slow
@pytest.mark.quiet
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the memory from /proc")
def test_a_million_rows_are_ranked_within_a_second_in_little_memory() -> None:
    done = subprocess.run([sys.executable, "-c", MILLION], capture_output=True, text=True, env=os.environ, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 1.0
    assert megabytes < 200
