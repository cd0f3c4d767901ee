"""`verify` recognizes every kind of artifact, makes the right checks, and says which of them failed."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import tessella
from tessella.bulk import RunSettings, run
from tessella.bulk.ledger import LEDGER, Ledger
from tessella.bulk.run_folder import LOG, SUMMARY, finished_shards, log_line, shard_entry
from tessella.engine.artefacts import seal
from tessella.errors import TessellaError, UsageError, WeightsError
from tessella.storage import file_hash
from tessella.verification import Verification, replay, verify, write_receipt
from tessella.verification.contents import content_hashes
from tessella.verification.goldens import key_of, photograph_paths, pixel_hash, read_goldens
from tessella.weights.catalogue import CATALOGUE

from ..benchmarks.test_photographs import load as load_benchmark
from ..test_builtin import CIFAR10_MODEL
from .conftest import KINDS
from .made import EXAMPLES, STORED, WEIGHTS, changed, copied, flipped

golden = load_benchmark("golden")
BUILTIN = [name for name, row in CATALOGUE.items() if row.file]


def verdicts(found: Verification) -> dict[str, str]:
    return {finding.check: finding.verdict for finding in found.findings}


# --- what passes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILTIN)
def test_built_in_models_give_the_golden_answers(name: str) -> None:
    found = verify(name)
    assert set(verdicts(found).values()) == {"passed"}
    assert set(verdicts(found)) == {
        *(f"SHA-256 of {CATALOGUE[name].file}", "tensors", "labels", "pixels", "answers", "batches of 1, 2 and 7")
    }
    assert (found.kind, found.code, found.name) == ("model", "", name)


@pytest.mark.parametrize("kind", ["exported", "run", "index"])
def test_intact_artifacts_pass(kind: str, made: dict[str, Path]) -> None:
    found = verify(made[kind])
    assert set(verdicts(found).values()) == {"passed"}, found.findings
    assert found.fingerprint == tessella.load(CIFAR10_MODEL).fingerprint
    assert found.files
    assert len(found.answers) == (4 if kind == "exported" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_stored_artifacts_of_earlier_versions_pass(kind: str, artifacts: dict[str, Path]) -> None:
    found = verify(artifacts[kind])
    assert not found.failed
    reasons = {finding.check: finding.verdict for finding in found.findings if finding.verdict != "passed"}
    expected = {
        "saved": {"answers": "recorded"},  # nobody knows what this model should answer
        "exported": {"answers": "recorded"},
        "run": {"rows computed again": "skipped"},  # its images are not where they were
        "trained": {"model": "skipped"},
    }
    assert reasons == expected.get(kind, {})


def test_an_unfinished_and_a_trained_run_pass() -> None:
    assert not verify(STORED / "run-unfinished").failed
    found = verify(STORED / "train-finished")
    assert not found.failed
    assert verdicts(found)["checkpoints"] == verdicts(found)["tensors"] == "passed"


# --- what fails -------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_of_a_weight_file_fails(artifacts: dict[str, Path]) -> None:
    path = artifacts["weights"]
    with changed(path, flipped(path.read_bytes(), 1_000_000)):
        found = verify(path)
    (failed,) = found.failed
    assert (failed.check, failed.code) == (f"SHA-256 of {WEIGHTS}", "hash_mismatch")
    assert failed.expected == CATALOGUE[CIFAR10_MODEL].sha256
    assert verdicts(found)["answers"] == "skipped"  # what was changed is not run


def test_other_answers_fail(made: dict[str, Path], tmp_path: Path) -> None:
    """A weight that is slightly wrong, in an export whose manifest was made to fit: only the answers tell."""
    folder = copied(made["exported"], tmp_path / "exported")
    weights = np.fromfile(folder / "model.bin", np.uint8)
    values = weights[: len(weights) // 4 * 4].view(np.float32)
    large = int(np.nanargmax(np.where(np.abs(values) < 10, np.abs(values), 0)))
    values[large] *= 1.5
    weights.tofile(folder / "model.bin")
    seal(folder, {"card": "tessella.json"})
    found = verify(folder)
    assert verdicts(found)["files"] == "passed"
    assert [finding.check for finding in found.failed] == ["answers"]
    assert found.code == "conversion_failed"


def test_a_changed_export_fails(made: dict[str, Path]) -> None:
    card = made["exported"] / "tessella.json"
    with changed(card, card.read_bytes().replace(b"airplane", b"airplanE")):
        found = verify(made["exported"])
    assert [(finding.check, finding.code) for finding in found.failed] == [("tessella.json", "hash_mismatch")]


def test_rows_that_were_swapped_by_someone_who_updated_all_hashes_fail(made: dict[str, Path], tmp_path: Path) -> None:
    """The ledger, the log and the summary fit the forged shard; the embeddings do not fit the images."""
    folder = copied(made["run"], tmp_path / "run")
    (shard,) = finished_shards(folder)
    path = folder / "shards" / shard.file
    table = pq.ParquetFile(path).read()
    column = table.schema.get_field_index("embedding")
    forged = table.set_column(column, table.schema.field(column), table["embedding"].take([1, 0, 2, 3]))
    pq.write_table(forged, path, compression="zstd", write_page_checksum=True)
    new = type(shard)(**{**vars(shard), "sha256": file_hash(path), "bytes": path.stat().st_size})
    (folder / SUMMARY).unlink()
    for name in (LEDGER, LOG):
        (folder / name).unlink()
    with Ledger(folder, new=True) as ledger:
        ledger.commit(new)
    (folder / LOG).write_bytes(log_line(shard_entry(new)))
    found = verify(folder)
    assert [finding.check for finding in found.failed] == ["rows computed again"]
    assert found.code == "damaged_run"


def test_damage_of_a_run_and_its_index_is_named(made: dict[str, Path]) -> None:
    (shard,) = (made["run"] / "shards").glob("*.parquet")
    with changed(shard, flipped(shard.read_bytes(), 99)):
        found = verify(made["run"])
    assert [finding.check for finding in found.failed] == ["shards/shard-00000000.parquet"]
    table = next(path for path in made["index"].rglob("*.lance") if path.is_file())
    with changed(table, flipped(table.read_bytes(), 9)):
        found = verify(made["index"])
    assert [finding.check for finding in found.failed] == [table.relative_to(made["index"]).as_posix()]


def test_a_damaged_checkpoint_of_a_training_run_is_named(tmp_path: Path) -> None:
    folder = copied(STORED / "train-interrupted", tmp_path / "run")
    path = next((folder / "checkpoints").glob("at-*/model.safetensors"))
    path.write_bytes(flipped(path.read_bytes(), 500))
    (failed,) = verify(folder).failed
    assert failed.check == path.relative_to(folder).as_posix()
    assert failed.code == "damaged_checkpoint"


def test_rows_are_not_computed_again_if_their_images_changed(tmp_path: Path) -> None:
    photos = copied(EXAMPLES, tmp_path / "photos")
    run([photos], tmp_path / "run", tessella.load(CIFAR10_MODEL), RunSettings(processes=1))
    assert verdicts(verify(tmp_path / "run"))["rows computed again"] == "passed"
    for path in photos.glob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"\0")
    found = verify(tmp_path / "run")
    assert verdicts(found)["rows computed again"] == "skipped"
    assert not found.failed


# --- names and paths --------------------------------------------------------------------------------------------------


def test_a_weight_file_is_recognized_by_its_hash(artifacts: dict[str, Path], tmp_path: Path) -> None:
    found = verify(copied(artifacts["weights"], tmp_path / "download.safetensors"))
    assert found.name == CIFAR10_MODEL
    assert set(verdicts(found).values()) == {"passed"}


def test_an_unknown_weight_file_needs_the_name_of_its_model(artifacts: dict[str, Path], tmp_path: Path) -> None:
    path = copied(artifacts["saved"] / "model.safetensors", tmp_path / "own.safetensors")
    with pytest.raises(UsageError, match="--model"):
        verify(path)
    found = verify(path, model=CIFAR10_MODEL)  # whose published hash it does not have
    assert found.code == "hash_mismatch"
    assert verify(artifacts["saved"] / "model.safetensors").kind == "model"  # its folder states the model


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("nope", UsageError),
        ("convmixer_768_33", UsageError),
        ("local-dir:nope", WeightsError),
        (str(EXAMPLES / "cat.jpg"), UsageError),
        (str(EXAMPLES), UsageError),
        ("", UsageError),
    ],
)
def test_what_cannot_be_verified_is_an_error(target: str, error: type[TessellaError]) -> None:
    with pytest.raises(error) as caught:
        verify(target)
    assert caught.value.hint or error is WeightsError


# --- golden outputs ---------------------------------------------------------------------------------------------------


def test_the_golden_outputs_are_those_of_pytorch_and_pillow() -> None:
    """Computed again for one model and every way to resize; `scripts/bench golden` computes all of them."""
    stored = read_goldens()
    assert {model["name"] for model in stored.models.values()} == set(BUILTIN)
    name = "mixer_ti_p4_32.cifar10"
    again = golden.compute_answers(name)["answers"]
    expected = stored.models[tessella.load(name, precision="float32").fingerprint]["answers"]
    for one, other in zip(json.loads(json.dumps(again)), expected, strict=True):
        np.testing.assert_allclose(one["logits"], other["logits"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(one["embedding"], other["embedding"], rtol=1e-6, atol=1e-6)
    specs = {tessella.data.InputSpec.from_cfg(row.to_dict()) for row in CATALOGUE.values()}
    assert {key_of(spec) for spec in specs} == set(stored.pixels)
    for spec in specs:
        hashes = [pixel_hash(golden.resize_with_pillow(path, spec)) for path in photograph_paths()]
        assert hashes == stored.pixels[key_of(spec)]


# --- receipts ---------------------------------------------------------------------------------------------------------


def test_a_receipt_is_replayed_on_a_copy_elsewhere(
    artifacts: dict[str, Path], receipts: dict[str, Path], tmp_path: Path
) -> None:
    for kind in ("weights", "saved", "exported", "run", "trained"):
        copy = copied(artifacts[kind], tmp_path / artifacts[kind].name)
        found = replay(receipts[kind], copy)
        assert not found.failed, (kind, found.findings)
        assert verdicts(found)["files"] == "passed"
        assert verdicts(found)["fingerprint"] == "passed"


def test_the_receipts_of_a_name_are_replayed_by_name(tmp_path: Path) -> None:
    write_receipt(verify(CIFAR10_MODEL), tmp_path / "receipt.json")
    assert not replay(tmp_path / "receipt.json").failed
    found = replay(tmp_path / "receipt.json", "mixer_ti_p4_32.cifar10")
    assert found.code == "not_as_recorded"


def test_answers_of_another_machine_are_compared_within_the_tolerance(
    artifacts: dict[str, Path], tmp_path: Path
) -> None:
    """A receipt with slightly other answers, versions and hardware, as another machine would write it."""
    found = verify(artifacts["exported"])

    def receipt(factor: float) -> Path:
        answers = tuple(
            dataclasses.replace(answer, logits=tuple(factor * value for value in answer.logits))
            for answer in found.answers
        )
        other = dataclasses.replace(
            found,
            answers=answers,
            machine={**found.machine, "cpu": "another"},
            packages={**found.packages, "numpy": "9"},
        )
        write_receipt(other, tmp_path / f"{factor}.json")
        return tmp_path / f"{factor}.json"

    close, far = replay(receipt(1 + 1e-6), artifacts["exported"]), replay(receipt(1.001), artifacts["exported"])
    assert not close.failed
    assert verdicts(close)["machine cpu"] == verdicts(close)["version of numpy"] == "differs"
    assert [finding.check for finding in far.failed] == ["answers of the receipt"]


def test_a_copy_that_fails_gets_no_receipt(made: dict[str, Path], tmp_path: Path) -> None:
    card = made["exported"] / "tessella.json"
    with changed(card, card.read_bytes() + b" "):
        found = verify(made["exported"])
    with pytest.raises(UsageError, match="gets no receipt"):
        write_receipt(found, tmp_path / "receipt.json")
    assert not (tmp_path / "receipt.json").exists()


def test_something_else_is_told_by_its_files(artifacts: dict[str, Path], receipts: dict[str, Path]) -> None:
    found = replay(receipts["exported"], artifacts["run"])
    assert found.code == "not_as_recorded"
    assert {"model.bin", "run.json"} <= {finding.check for finding in found.failed}
    assert verdicts(found)["answers"] == "skipped"


def test_a_folder_that_cannot_be_listed_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").mkdir()
    listed = Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        if folder.name == "secret":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(UsageError, match=r"secret.*Permission denied") as caught:
        content_hashes(tmp_path)
    assert caught.value.code == "unreadable"


def test_a_link_to_a_folder_is_not_followed(artifacts: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(artifacts["saved"], tmp_path / "saved")
    (folder / "all").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="link to a folder"):
        verify(folder)


def test_different_files_never_have_the_same_name_in_a_receipt(tmp_path: Path) -> None:
    for name, content in ((os.fsdecode(b"\xff"), "a"), (r"\xff", "b")):
        (tmp_path / name).write_text(content)
    assert len(content_hashes(tmp_path)) == 2


def test_a_thousand_nested_folders_are_verified(tmp_path: Path) -> None:
    folders = [tmp_path / "a"]
    while len(folders) < sys.getrecursionlimit():
        folders.append(folders[-1] / "a")
    for folder in folders:
        folder.mkdir()
    file = folders[-1] / "file"
    file.write_text("content")
    try:
        (found,) = content_hashes(tmp_path).values()
    finally:
        file.unlink()
        for folder in reversed(folders):
            folder.rmdir()
    assert found[0] == len("content")


def test_a_receipt_with_answers_of_different_lengths_is_not_as_recorded(
    artifacts: dict[str, Path], tmp_path: Path
) -> None:
    found = verify(artifacts["exported"])
    first, *others = found.answers
    for changed_answer in (
        dataclasses.replace(first, logits=first.logits[:-1]),
        dataclasses.replace(first, embedding=()),
    ):
        forged = dataclasses.replace(found, answers=(changed_answer, *others))
        write_receipt(forged, tmp_path / "forged.json")
        replayed = replay(tmp_path / "forged.json", artifacts["exported"])
        assert [finding.check for finding in replayed.failed] == ["answers of the receipt"]
