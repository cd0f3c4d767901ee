"""From evidence to findings: which image of a pair is named, and what the reasons say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tessella.data.all_splits import SplitImages, open_all_splits
from tessella.errors import UsageError
from tessella.inspection.copies import Copies
from tessella.inspection.findings import Evidence, Finding, collect, count_kinds
from tessella.inspection.kinds import KINDS, PAIRED, REMOVED, check_kinds
from tessella.inspection.label_errors import LabelErrors
from tessella.inspection.outliers import Remoteness

from ..data.labelled import write
from .made import measurements


@pytest.fixture
def images(tmp_path: Path) -> SplitImages:
    """Return test/a/1, test/b/2, train/a/3, train/a/4, train/b/5, val/a/6, in this order."""
    write(
        tmp_path,
        *(f"{name}.jpg" for name in ("test/a/1", "test/b/2", "train/a/3", "train/a/4", "train/b/5", "val/a/6")),
    )
    return open_all_splits([tmp_path])


def place(images: SplitImages, name: str) -> int:
    return [images.images.key(i) for i in range(len(images))].index(f"{name}.jpg")


def copies(*pairs: tuple[int, int, str, float]) -> Copies:
    i, j, kind, score = zip(*pairs, strict=True) if pairs else ((), (), (), ())
    count = len(pairs)
    return Copies(
        i=np.array(i, np.int64),
        j=np.array(j, np.int64),
        kind=np.array(kind, "<U7"),
        score=np.array(score, np.float32),
        cosine=np.full(count, 0.99, np.float32),
        mirrored=np.zeros(count, bool),
        group=np.arange(6),
    )


def evidence(images: SplitImages, found: Copies, labels: LabelErrors | None = None) -> Evidence:
    remote = Remoteness(*(np.zeros(6, np.float32) for _ in range(4)))
    return Evidence(images, measurements(np.eye(6)), found, labels, remote, [])


def findings(facts: Evidence) -> list[Finding]:
    return collect(facts, min_images=0, label_margin=0.5, outlier=5)


def test_the_image_outside_the_test_split_is_named(images: SplitImages) -> None:
    test, train, val = (place(images, name) for name in ("test/a/1", "train/a/3", "val/a/6"))
    pairs = [(test, train, "near", 0.8), (train, val, "exact", 1.0), (test, val, "near", 0.7)]
    found = findings(evidence(images, copies(*((min(a, b), max(a, b), kind, score) for a, b, kind, score in pairs))))
    assert [(row.kind, row.key, row.related, row.suggestion) for row in found] == [
        ("exact_leak", "train/a/3.jpg", "val/a/6.jpg", "remove it from train"),
        ("near_leak", "train/a/3.jpg", "test/a/1.jpg", "remove it from train"),
        ("near_leak", "val/a/6.jpg", "test/a/1.jpg", "remove it from val"),
    ]


def test_the_larger_image_stays(images: SplitImages) -> None:
    facts = evidence(images, copies((place(images, "train/a/3"), place(images, "train/a/4"), "near", 0.9)))
    facts.measured.width[place(images, "train/a/4")] = 500
    (row,) = findings(facts)
    assert (row.key, row.related) == ("train/a/3.jpg", "train/a/4.jpg")
    assert row.reason.startswith("nearly the same picture as another image: ")  # similar pixels are no proof
    assert "96x96 and 500x96 pixels" in row.reason
    assert row.score == pytest.approx(0.9)


def errors(wrong: int) -> LabelErrors:
    margin = np.full(6, -0.9, np.float32)
    margin[wrong] = 0.8
    return LabelErrors(
        probability=np.where(margin > 0, 0.1, 0.95).astype(np.float32),
        suggested=np.ones(6, np.int64),
        margin=margin,
        confident=margin > 0,
        estimated=1,
        accuracy=0.9,
        judged=np.ones(6, bool),
    )


def test_of_two_copies_the_one_with_a_wrong_label_goes(images: SplitImages) -> None:
    right, wrong = place(images, "train/b/5"), place(images, "train/a/3")
    facts = evidence(images, copies((min(right, wrong), max(right, wrong), "exact", 1.0)), errors(wrong))
    facts.measured.width[wrong] = 500
    rows = {row.kind: row for row in findings(facts)}
    assert list(rows) == ["exact_duplicate", "conflicting_labels", "label_error"]
    assert rows["exact_duplicate"].key == "train/a/3.jpg"
    assert rows["conflicting_labels"].reason.endswith("the labels differ: a and b")
    assert rows["label_error"].score == pytest.approx(0.8)
    assert "predicted as b with probability 0.90" in rows["label_error"].reason
    assert "the label a has 0.10" in rows["label_error"].reason


def test_each_image_has_one_finding_of_a_kind_that_of_its_strongest_pair(images: SplitImages) -> None:
    one, two, other = (place(images, name) for name in ("test/a/1", "test/b/2", "train/a/3"))
    (row,) = (
        row
        for row in findings(evidence(images, copies((one, other, "near", 0.7), (two, other, "near", 0.9))))
        if row.kind == "near_leak"
    )
    assert row.related == "test/b/2.jpg"


def exact(*places: int) -> list[tuple[int, int, str, float]]:
    """Return the pairs of images with equal bytes, as `find_copies` gives them."""
    first, *others = sorted(places)
    return [(first, other, "exact", 1.0) for other in others]


def related(found: list[Finding], kind: str) -> dict[str, str]:
    return {row.key: row.related for row in found if row.kind == kind}


def test_of_many_copies_all_but_the_best_are_named(images: SplitImages) -> None:
    """The first of them in the data is not the one that stays."""
    train = [place(images, name) for name in ("train/a/3", "train/a/4", "train/b/5")]
    facts = evidence(images, copies(*exact(*train)))
    facts.measured.width[train[1]] = 500
    assert related(findings(facts), "exact_duplicate") == {
        "train/a/3.jpg": "train/a/4.jpg",
        "train/b/5.jpg": "train/a/4.jpg",
    }


def test_copies_in_three_splits_are_all_leaks(images: SplitImages) -> None:
    places = [place(images, name) for name in ("train/a/3", "train/a/4", "val/a/6", "test/b/2")]
    found = findings(evidence(images, copies(*exact(*places))))
    names = ("train/a/3.jpg", "train/a/4.jpg", "val/a/6.jpg")
    assert related(found, "exact_leak") == dict.fromkeys(names, "test/b/2.jpg")
    assert related(found, "conflicting_labels") == dict.fromkeys(names, "test/b/2.jpg")
    assert not related(found, "exact_duplicate")


def test_a_near_copy_is_named_with_all_images_of_its_bytes(images: SplitImages) -> None:
    """Either image of a near pair can have exact copies, of which others stay than the one that was compared."""
    one, two, test, val = (place(images, name) for name in ("train/a/3", "train/a/4", "test/a/1", "val/a/6"))
    near = (min(one, val), max(one, val), "near", 0.9)
    found = findings(evidence(images, copies(*exact(one, two), *exact(test, val), near)))
    assert related(found, "exact_duplicate") == {"train/a/4.jpg": "train/a/3.jpg"}
    assert related(found, "exact_leak") == {"val/a/6.jpg": "test/a/1.jpg"}
    assert related(found, "near_leak") == dict.fromkeys(("train/a/3.jpg", "train/a/4.jpg"), "test/a/1.jpg")


def test_an_unreadable_image_does_not_stay_for_a_copy(images: SplitImages) -> None:
    """Decoding one of two equal files can fail, such as by taking too long."""
    test, train = place(images, "test/a/1"), place(images, "train/a/3")
    facts = evidence(images, copies(*exact(test, train)))
    facts.measured.status[test] = "decode_timeout"
    assert related(findings(facts), "exact_leak") == {"test/a/1.jpg": "train/a/3.jpg"}


def test_similar_pictures_keep_their_cosine_as_score(images: SplitImages) -> None:
    (row,) = findings(evidence(images, copies((0, 1, "similar", 0.3))))
    assert (row.kind, row.suggestion) == ("similar", "look at both")
    assert row.score == pytest.approx(0.99)
    assert "similarity of the pixels 0.30" in row.reason


def test_outliers_say_among_what(images: SplitImages) -> None:
    facts = evidence(images, copies())
    facts.remote.overall[0] = 9
    facts.remote.in_class[1], facts.remote.class_distance[1] = 7, 0.4
    first, second = findings(facts)
    assert "its 10 nearest images, 9.0 robust" in first.reason
    assert "mean cosine distance 0.40 to its 10 nearest images of" in second.reason
    assert (first.index, second.index) == (0, 1)


def test_every_kind_is_described_and_removed_kinds_concern_images() -> None:
    for name, kind in KINDS.items():
        assert name == name.lower()
        assert kind.title[0].isupper()
        assert kind.text.endswith(".")
    assert set(PAIRED) <= set(KINDS)
    assert "small_class" not in REMOVED
    assert "outlier" not in REMOVED
    check_kinds(REMOVED)
    with pytest.raises(UsageError, match="not a kind of finding"):
        check_kinds(["label_errors"])


def test_counts_are_in_the_order_of_the_kinds() -> None:
    rows = [Finding("", "", "", kind, 1.0, "") for kind in ("gray", "unreadable", "gray")]
    assert count_kinds(rows) == {"unreadable": 1, "gray": 2}
