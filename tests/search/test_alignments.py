"""Alignments: sealed files, refused for other models, and searches in an index of the old model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tessella.errors import TessellaError, UsageError
from tessella.records import npz_bytes
from tessella.search.alignments import Alignment, Making
from tessella.search.index import build_index
from tessella.search.query import Index
from tessella.storage import json_hash

from ..bulk.runs import numbered, random_vectors, unit, write_run
from .test_query import Fake

OLD = Making("tiny", "0123456789abcdef", "exact", "tessella", "float32", "eager")
NEW = Making("next", "fedcba9876543210", "fast", "tessella", "float32", "eager")


def alignment_of(width: int = 16, seed: int = 0) -> Alignment:
    """Return an alignment that undoes a rotation."""
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0]
    return Alignment(turn.astype(np.float32), OLD, NEW, 500, 0.75)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = write_run(tmp_path_factory.mktemp("aligned") / "run", numbered(random_vectors(300, 1)))
    build_index(out)
    return out


def code_of(call: Any, *arguments: Any) -> str:
    with pytest.raises(TessellaError) as caught:
        call(*arguments)
    return caught.value.code


def test_a_file_restores_everything(tmp_path: Path) -> None:
    before = alignment_of()
    before.save(tmp_path / "a.safetensors")
    after = Alignment.load(tmp_path / "a.safetensors")
    assert np.array_equal(after.matrix, before.matrix)
    assert (after.old, after.new, after.images, after.kept) == (OLD, NEW, 500, 0.75)
    assert after.fingerprint == before.fingerprint
    assert code_of(before.save, tmp_path / "a.json") == "bad_argument"


def test_aligned_embeddings_have_a_fingerprint_of_their_own() -> None:
    alignment = alignment_of()
    others = [alignment_of(seed=1), Alignment(alignment.matrix, OLD, NEW._replace(fingerprint="1" * 16), 500, 0.75)]
    others.append(Alignment(alignment.matrix, OLD._replace(fingerprint="1" * 16), NEW, 500, 0.75))
    fingerprints = {alignment.fingerprint, OLD.fingerprint, NEW.fingerprint, *(other.fingerprint for other in others)}
    assert len(fingerprints) == 6
    assert len(alignment.fingerprint) == 16


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    alignment_of(4).save(path)
    data = path.read_bytes()
    for i in range(len(data)):
        path.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        assert code_of(Alignment.load, path) == "bad_format", i
    for cut in (0, 7, 100, len(data) - 1):
        path.write_bytes(data[:cut])
        assert code_of(Alignment.load, path) == "bad_format"
    path.write_bytes(safetensors.numpy.save({"matrix": np.eye(4, dtype=np.float32)}))
    assert code_of(Alignment.load, path) == "bad_format"
    assert code_of(Alignment.load, tmp_path / "missing.safetensors") == "not_found"


def test_a_matrix_that_is_not_orthogonal_is_refused(tmp_path: Path) -> None:
    Alignment(2 * np.eye(4, dtype=np.float32), OLD, NEW, 5, 0.5).save(tmp_path / "a.safetensors")
    assert code_of(Alignment.load, tmp_path / "a.safetensors") == "bad_format"


@pytest.mark.parametrize(
    "changed",
    [
        dict(images=float("inf")),
        dict(images=-1),
        dict(images="5"),
        dict(kept=float("nan")),
        dict(kept=10**400),
        dict(old=dict.fromkeys(Making._fields, 5)),
        dict(new={}),
        dict(format=2),
    ],
)
def test_sealed_facts_of_the_wrong_kind_are_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    """The hash is right, so the file is not damaged: it was not written by this package."""
    path = tmp_path / "a.safetensors"
    alignment = alignment_of(4)
    alignment.save(path)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    facts = json.loads(header["__metadata__"]["tessella"])
    facts.pop("sha256")

    def write(facts: dict[str, Any]) -> None:
        sealed = json.dumps(facts | dict(sha256=json_hash(facts)))
        path.write_bytes(safetensors.numpy.save({"matrix": alignment.matrix}, {"tessella": sealed}))

    write(facts)
    assert Alignment.load(path).fingerprint == alignment.fingerprint
    write(facts | changed)
    assert code_of(Alignment.load, path) == "bad_format"


def test_the_width_of_embeddings_is_checked() -> None:
    assert code_of(alignment_of(), np.zeros((3, 15), np.float32)) == "bad_argument"
    assert code_of(alignment_of(), np.zeros(16, np.float32)) == "bad_argument"


def test_images_of_the_new_model_find_rows_of_the_old_one(run: Path) -> None:
    alignment = alignment_of()
    vector = random_vectors(300, 1)[17]
    turned = unit(vector[None]) @ alignment.matrix  # as the new model would embed the image
    index = Index(run, Fake(NEW.fingerprint), alignment=alignment)
    (found,) = index.search(turned[0].tobytes(), top=1)
    assert (found.row, round(found.score, 3)) == (17, 1)
    (without,) = Index(run, Fake()).search(turned[0].tobytes(), top=1)
    assert without.score < 0.9
    assert index.row_query(3).vector == pytest.approx(Index(run).row_query(3).vector)  # rows are old embeddings


def test_files_are_aligned_by_their_fingerprint(run: Path, tmp_path: Path) -> None:
    alignment = alignment_of()
    vectors = unit(random_vectors(300, 1)[:1])
    files = {"old": (OLD, vectors), "new": (NEW, vectors @ alignment.matrix)}
    for name, (making, values) in files.items():
        facts = dict(fingerprint=np.array(making.fingerprint), model=np.array(making.model), embeddings=values)
        (tmp_path / f"{name}.npz").write_bytes(npz_bytes(facts))
        (found,) = Index(run, alignment=alignment).search(str(tmp_path / f"{name}.npz"), top=1)
        assert (found.row, round(found.score, 3)) == (0, 1)
    assert code_of(Index(run).search, str(tmp_path / "new.npz")) == "changed_run"  # never without being asked


def test_other_models_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Index(run, Fake(OLD.fingerprint), alignment=alignment_of())
    assert caught.value.code == "changed_run"
    other = Alignment(alignment_of().matrix, NEW, OLD, 500, 0.75)
    with pytest.raises(UsageError) as caught:
        Index(run, alignment=other)
    assert caught.value.code == "changed_run"
    assert "leads to embeddings of next" in caught.value.message
