"""Names of files and .npz archives: nothing of a name or of a file is trusted."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

import tessella
from tessella.errors import OutputError, UsageError
from tessella.explain import Explanation
from tessella.explain.maps import AttributionMap
from tessella.explain.storage import FileNames, read_arrays, safe_name, write_arrays
from tessella.results import Prediction

from .made import CAT, DOG, make_branches, make_explanation, make_scores

HOSTILE = [
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "",
    "/",
    "a/../b.jpg",
    "C:\\Windows\\system32",
    "con.jpg",
    "NUL",
    "com1.tar.gz",
    "a\x00b.jpg",
    "line\nbreak.jpg",
    "\x1b[31mred.jpg",
    "-rf.jpg",
    ".hidden",
    "x" * 300 + ".jpg",
    "猫" * 300 + ".jpg",
    "caf\u0065\u0301.jpg",
    os.fsdecode(b"lat\xe9.jpg"),
    "\u202egpj.exe",
    'photos.tar/a b?*|<>".jpg',
    "$(rm -rf ~).jpg",
]


@pytest.mark.parametrize("key", HOSTILE)
def test_names_of_files_are_safe(key: str, tmp_path: Path) -> None:
    name = FileNames().new(key, "not " + key)
    assert name
    assert len(f"{name}.explained.png".encode()) <= 255
    assert not set(name) & set('/\\\0\n\r\x1b:*?"<>|$ \u202e')
    assert not name.startswith((".", "-"))
    (tmp_path / f"{name}.explained.png").write_bytes(b"")  # the file system agrees
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.explained.png"]


def test_names_of_several_long_parts_fit_into_a_file_system(tmp_path: Path) -> None:
    names = FileNames()
    made = [names.new("猫" * 100, "b" * 150, "not " + "c" * 150) for _ in range(2)]
    assert len(set(made)) == 2
    for name in made:
        (tmp_path / f"{name}.explained.png").write_bytes(b"")


def test_names_stay_readable() -> None:
    names = FileNames()
    assert names.new("photos/a cat.jpg") == "a_cat"
    assert names.new("photos.tar/Ärger.webp", "tabby, tabby cat") == "Ärger.tabby_tabby_cat"
    assert names.new("猫.jpg") == "猫"
    assert names.new("7") == "7"


def test_the_same_letters_give_the_same_name_however_they_are_encoded() -> None:
    assert safe_name("cafe\u0301") == safe_name("caf\u00e9") == "café"


def test_names_are_unique_also_without_case() -> None:
    names = FileNames()
    keys = ["a/cat.jpg", "b/cat.png", "b/CAT.jpg", "cat-2", "cat", "c/cat.jpg"]
    made = [names.new(key) for key in keys]
    assert len({name.casefold() for name in made}) == len(keys)
    assert made[:3] == ["cat", "cat-2", "CAT-3"]


def same(a: Explanation, b: Explanation) -> bool:
    """Compare all fields, arrays by value."""

    def plain(value: object) -> object:
        if isinstance(value, np.ndarray):
            return (value.dtype.str, value.shape, value.tobytes())
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {key: plain(one) for key, one in value.items()} if isinstance(value, dict) else value

    return plain(a) == plain(b)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(versus=DOG),
        dict(faithfulness=None),
        dict(faithfulness=make_scores(faithful=False)),
        dict(key=os.fsdecode(b"caf\xe9\\x.jpg"), predictions=(), target=Prediction(1, "猫 <b>", 0.5)),
        dict(map=make_branches()),
        dict(map=dataclasses.replace(make_branches(), method="grad-cam", layer="stem", shares={})),
    ],
)
def test_explanations_are_restored(changes: dict[str, object], tmp_path: Path) -> None:
    explanation = make_explanation(**changes)
    explanation.save_arrays(tmp_path / "x.npz")
    assert same(Explanation.load(tmp_path / "x.npz"), explanation)


def test_the_arrays_can_be_read_without_this_package(tmp_path: Path) -> None:
    figure, arrays = make_explanation().save(tmp_path / "new" / "folder")
    assert figure.name == "cat.explained.png"
    with np.load(arrays, allow_pickle=False) as found:
        assert str(found["key"]) == "photos/cat.jpg"
        assert str(found["model"]) == "a_model"
        assert str(found["fingerprint"]) == "0123456789abcdef"
        assert str(found["tessella"]) == tessella.__version__
        assert found["map"].shape == (4, 5)
        assert found["target_labels"].tolist() == [CAT.label]
        assert found["score_names"].tolist() == ["deletion", "insertion", "correlation"]
        assert found["scores"].shape == (3, 5)


def write_with(path: Path, **changes: object) -> None:
    """Write the arrays of an explanation with two parts, some of them replaced; None leaves one out."""
    make_explanation(map=make_branches(), versus=DOG).save_arrays(path)
    arrays = read_arrays(path)
    for name, value in changes.items():
        arrays.pop(name, None)
        if value is not None:
            arrays[name] = np.asarray(value)
    write_arrays(path, arrays)


@pytest.mark.parametrize(
    "changes",
    [
        dict(format=99),
        dict(format=None),
        dict(format="x"),
        dict(map=None),
        dict(map=np.zeros((2, 2, 2), np.float32)),
        dict(map=np.full((2, 2), np.nan, np.float32)),
        dict(map=np.zeros((0, 2), np.float32)),
        dict(map="text"),
        dict(pixels=np.zeros((2, 2), np.uint8)),
        dict(pixels=np.zeros((2, 2, 3), np.float32)),
        dict(target_indices=np.zeros(0, np.int64)),
        dict(target_labels=["a", "b"]),
        dict(scores=np.zeros((2, 5))),
        dict(scores=np.zeros((3, 2))),
        dict(score_names=["a", "b", "c"]),
        dict(cells=[1, 2, 3]),
        dict(deletion_curve=np.zeros((2, 2))),
        dict(part_names=["a", "b", "missing"]),
        dict(part0=None),
        dict(part1=np.zeros((2, 2, 2), np.float32)),
        dict(part1=np.full((2, 2), np.inf, np.float32)),
        dict(part1="text"),
        dict(part_shares=[0.5]),
        dict(part_shares=["a", "b"]),
        dict(part_shares=[[0.5], [0.5]]),
        dict(part_shares=0.5),
        dict(part_shares=[np.inf, 0.5]),
        dict(format=np.inf),
        dict(cells=[np.inf]),
        dict(cells=[np.inf, 1]),
        dict(target_indices=[np.inf]),
        dict(predictions_indices=[np.inf] * 3),
        dict(versus_indices=[np.inf]),
        dict(versus_indices=np.zeros(0)),
        dict(scores=np.full((3, 5), np.inf)),
        dict(scores=np.full((3, 5), np.nan)),
        dict(deletion_curve=np.full((5, 5), 1e300)),
        dict(insertion_curve=np.full((5, 5), np.nan, np.float32)),
        dict(insertion_curve=np.ones((5, 5), np.complex64)),
        dict(insertion_curve=np.ones((5, 5, 5), np.float32)),
        dict(total=1j),
        dict(total=[1.0]),
        dict(format=[1]),
        dict(smoothness=np.inf),
        dict(map=np.zeros((33, 40), np.float32)),  # the image has 32 x 40 pixels
        dict(part0=np.zeros((32, 41), np.float32)),
        dict(map=np.zeros((5000, 5000), np.float32)),
    ],
)
@pytest.mark.filterwarnings("error")
def test_files_with_other_content_are_refused(changes: dict[str, object], tmp_path: Path) -> None:
    write_with(tmp_path / "x.npz", **changes)
    with pytest.raises(UsageError) as caught:
        Explanation.load(tmp_path / "x.npz")
    assert caught.value.code == "bad_argument"


@pytest.mark.parametrize(
    "name", ["method", "model", "reason", "layer", "fingerprint", "verdict_reason", "target_labels"]
)
def test_text_that_is_not_unicode_is_made_so(name: str, tmp_path: Path) -> None:
    """Figures, pages and JSON need valid text; a lone surrogate is shown as its escape."""
    write_with(tmp_path / "x.npz", **{name: ["a\ud800"] if name == "target_labels" else "a\ud800"})
    found = Explanation.load(tmp_path / "x.npz")
    assert "a\\ud800" in json.dumps(found.as_dict()).replace("\\\\", "\\")
    assert found.figure()
    found._repr_html_().encode()
    found.save_arrays(tmp_path / "y.npz")


def test_files_that_are_too_large_are_refused(tmp_path: Path) -> None:
    """The image of a model with 2048 pixels a side can be explained by pixels; more is not unpacked."""
    side = 2048
    pixels = np.zeros((side, side, 3), np.uint8)
    attribution = AttributionMap(np.zeros((side, side), np.float32), "integrated-gradients")
    make_explanation(pixels=pixels, map=attribution).save_arrays(tmp_path / "large.npz")
    assert Explanation.load(tmp_path / "large.npz").map.values.shape == (side, side)
    write_with(tmp_path / "x.npz", pixels=np.zeros((5000, 5000, 3), np.uint8))
    with pytest.raises(UsageError, match="not an explanation"):
        Explanation.load(tmp_path / "x.npz")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    make_explanation().save_arrays(tmp_path / "good.npz")
    good = (tmp_path / "good.npz").read_bytes()
    bad = tmp_path / "bad.npz"
    for data in (b"", b"text", good[:100], good[: len(good) // 2], json.dumps({"a": 1}).encode()):
        bad.write_bytes(data)
        with pytest.raises(UsageError) as caught:
            Explanation.load(bad)
        assert caught.value.code == "bad_argument"


def test_files_with_python_objects_or_absurd_sizes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, map=np.array([{}], object), allow_pickle=True)
    with pytest.raises(UsageError):
        read_arrays(path)
    with zipfile.ZipFile(path, "w") as file:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, dict(descr="<f4", fortran_order=False, shape=(1 << 40,)))
        file.writestr("map.npy", header.getvalue())
    with pytest.raises(UsageError):
        read_arrays(path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Explanation.load(tmp_path / "nowhere.npz")
    assert caught.value.code == "not_found"


def test_a_file_that_cannot_be_written_is_reported_and_the_old_one_kept(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        make_explanation().save_arrays(tmp_path / "nowhere" / "x.npz")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError):
        make_explanation().save(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "a file"
