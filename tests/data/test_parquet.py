"""Images in Parquet files: column types, reading in bounded memory, and hostile files."""

from __future__ import annotations

import base64
import multiprocessing
import pickle
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from tessella.data import memory, parquet
from tessella.data.datasets import open_labelled
from tessella.data.limits import Limits
from tessella.data.source import Source
from tessella.data.sources import iter_sources
from tessella.errors import ImageError, UsageError

DATA = [b"first", b"second", b"third", b"first"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for i, data in enumerate(DATA):
        Path(f"{i}.jpg").write_bytes(data)
    return tmp_path


def write(columns: Any, name: str = "x.parquet", **options: Any) -> str:
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), name, **options)
    return name


def read(name: str, limits: Limits | None = None) -> list[bytes | str]:
    """Return the bytes of each row, or the code of its error."""
    return [outcome(source, limits or Limits()) for source in iter_sources([name])]


def outcome(source: Source, limits: Limits) -> bytes | str:
    try:
        return source.read(limits)
    except ImageError as error:
        return error.code


PATHS = [f"{i}.jpg" for i in range(4)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PATH_STRUCT = pa.struct([("path", pa.string())])
LABELS = pa.array([0, 1, 1, 0])


@pytest.mark.parametrize(
    "column",
    [
        pytest.param(pa.array(DATA, kind), id=str(kind))
        for kind in (
            pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary()),
            pa.dictionary(pa.int32(), pa.large_binary()),
        )
    ]
    + [
        pytest.param(pa.array(PATHS, kind), id=str(kind))
        for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int16(), pa.string()))
    ]
    + [
        pytest.param(pa.array([list(image) for image in DATA], kind), id=str(kind))
        for kind in (pa.list_(pa.uint8()), pa.large_list(pa.uint8()), pa.list_(pa.int8()))
    ]
    + [
        pytest.param(pa.array([dict(bytes=image, path="x") for image in DATA], STRUCT), id="struct with bytes"),
        pytest.param(pa.array([dict(bytes=None, path=path) for path in PATHS], STRUCT), id="struct with paths"),
        pytest.param(pa.array([dict(path=path) for path in PATHS], PATH_STRUCT), id="only paths"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("group", [2, 100])
def test_column_types(column: pa.Array, group: int) -> None:
    name = write(dict(image=column, label=LABELS), row_group_size=group)
    assert read(name) == DATA
    labelled = open_labelled(name)
    assert [labelled.read(i) for i in range(4)] == DATA
    assert labelled.fingerprint


def test_a_struct_with_a_binary_view() -> None:
    column = pa.array([dict(bytes=image) for image in DATA], pa.struct([("bytes", pa.binary_view())]))
    name = write(dict(image=column, label=LABELS))
    assert read(name) == DATA
    assert open_labelled(name).read(3) == DATA[3]


def test_values_of_an_extension_type_are_errors() -> None:
    stored = pa.array([b"x" * 16, None], pa.binary(16))
    name = write({"image": pa.ExtensionArray.from_storage(pa.uuid(), stored)})
    assert read(name) == ["unreadable", "empty"]


def test_bytes_of_fixed_size() -> None:
    name = write(dict(image=pa.array([b"abc", b"def"], pa.binary(3)), label=[0, 1]))
    assert read(name) == [b"abc", b"def"]
    assert open_labelled(name).read(1) == b"def"


@pytest.mark.parametrize("name", ["img", "Image", "JPG", "png", "image.bytes", "image_bytes", "bytes", "content"])
@pytest.mark.parametrize("label", ["labels", "fine_label", "Class", "cls", "target"])
def test_column_names(name: str, label: str) -> None:
    path = write({"id": [1, 2, 3, 4], name: DATA, label: ["a", "b", "b", "a"], "coarse_label": [1, 1, 1, 1]})
    assert read(path) == DATA
    labelled = open_labelled(path)
    assert (labelled.classes, labelled.labels.tolist(), labelled.read(2)) == (("a", "b"), [0, 1, 1, 0], b"third")


def test_the_first_column_name_that_fits_is_used() -> None:
    assert read(write(dict(path=PATHS, image=[1, 2, 3, 4], bytes=DATA))) == DATA
    assert read(write({"image": DATA, "image.bytes": DATA[::-1]})) == DATA


def test_class_names_of_hugging_face_under_another_column() -> None:
    features = b'{"info": {"features": {"labels": {"names": ["cat", "dog"]}}}}'
    table = pa.table(dict(img=DATA, labels=LABELS)).replace_schema_metadata({"huggingface": features})
    assert open_labelled(write(table)).classes == ("cat", "dog")


def test_the_error_for_other_columns_says_what_to_rename() -> None:
    name = write(dict(pixels=[[1.0]], caption=[1]))
    (source,) = iter_sources([name])
    assert source.error is not None
    assert "pixels (list<element: double>)" in source.error.message
    assert "rename" in source.error.message
    with pytest.raises(UsageError, match="rename"):
        open_labelled(name)


def test_empty_cells_and_limits() -> None:
    struct = pa.array([None, dict(bytes=b"", path=None), dict(bytes=b"abc", path=None)], STRUCT)
    assert read(write(dict(image=struct)), Limits(bytes=2)) == ["empty", "empty", "too_many_bytes"]
    assert read(write(dict(image=pa.array([None, "", "gone.jpg", "a\0b"])))) == [
        "empty", "empty", "not_found", "unreadable",
    ]  # fmt: skip


def test_text_that_is_not_utf_8() -> None:
    def invalid(values: list[bytes]) -> pa.Array:
        array = pa.array(values, pa.binary())
        return pa.Array.from_buffers(pa.string(), len(values), array.buffers())

    assert read(write(dict(image=invalid([b"0.jpg", b"\xff.jpg", b"2.jpg"])))) == [
        b"first",
        "corrupt_archive",
        b"third",
    ]
    with pytest.raises(UsageError, match="UTF-8") as error:
        open_labelled(write(dict(image=DATA[:2], label=invalid([b"\xff", b"x"]))))
    assert error.value.code == "bad_argument"


def test_a_column_name_that_is_not_utf_8() -> None:
    data = Path(write(dict(image=DATA, label=LABELS, other=LABELS))).read_bytes()
    Path("x.parquet").write_bytes(data.replace(b"other", b"\xff\xfe\xfd\xfc\xfb"))
    assert set(read("x.parquet")) <= {"corrupt_archive", *DATA}
    with suppress(UsageError):
        assert open_labelled("x.parquet").read(0) == DATA[0]


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_BATCH", 3000)


def rows(count: int) -> list[bytes]:
    return [bytes([i % 256]) * 1000 for i in range(count)]


def test_row_groups_are_read_in_batches(small_batches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are read in order, backwards and at random, and never the whole row group at once."""
    name = write(dict(image=rows(100)), row_group_size=60, use_dictionary=False)
    sources = list(iter_sources([name]))
    expected = rows(100)
    assert [source.read() for source in sources] == expected
    for at in (99, 50, 51, 0, 98, 59, 60, 61, 10, 3, 30):
        assert sources[at].read() == expected[at]
    assert parquet._reader is not None
    assert max(len(column) for _, column in parquet._reader._cached) < 10


def test_threads_share_the_reader(small_batches: None) -> None:
    sources = list(iter_sources([write(dict(image=rows(200)), row_group_size=50, use_dictionary=False)]))
    wrong: list[int] = []

    def work(part: list[int]) -> None:
        wrong.extend(i for i in part if sources[i].read() != bytes([i % 256]) * 1000)

    threads = [threading.Thread(target=work, args=(list(range(start, 200, 4)),)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def read_some(sources: list[Source]) -> list[bytes]:
    return [source.read() for source in sources]


def test_a_forked_process_has_its_own_reader(small_batches: None) -> None:
    """A shared reader would move the position in the file that the parent reads from."""
    sources = list(iter_sources([write(dict(image=rows(60)), use_dictionary=False)]))
    assert sources[10].read() == rows(60)[10]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(read_some, (sources[11:40],)) == rows(60)[11:40]
        assert read_some(sources[11:]) == rows(60)[11:]


def test_rows_before_damage_in_a_row_group_are_read(small_batches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = dict(use_dictionary=False, compression="zstd", data_page_size=5000, write_batch_size=5)
    rows = [random.Random(i).randbytes(1000) for i in range(60)]
    name = write(dict(image=rows), **options)
    data = bytearray(Path(name).read_bytes())
    middle = len(data) // 3
    data[middle : middle + 6000] = bytes(6000)  # longer than a page, so that it contains the header of one
    Path(name).write_bytes(data)
    for batch in (3000, 1 << 20):
        monkeypatch.setattr(parquet, "_BATCH", batch)
        results = read(name)
        good = results.index("corrupt_archive")
        assert 5 <= good < 60
        assert results == [*rows[:good], *["corrupt_archive"] * (60 - good)]


def test_a_large_row_group_is_refused_if_memory_is_insufficient(monkeypatch: pytest.MonkeyPatch) -> None:
    name = write(dict(image=rows(20)))
    monkeypatch.setattr(parquet, "_LARGE_GROUP", 1000)
    requested: list[int] = []

    def make_room(needed: int) -> bool:
        requested.append(needed)
        return True

    monkeypatch.setattr(parquet, "make_room", make_room)
    assert read(name) == rows(20)
    assert len(requested) == 1
    assert requested[0] > 2000
    monkeypatch.setattr(parquet, "make_room", memory.make_room)
    monkeypatch.setattr(memory, "available_memory", lambda: 10)
    Path(name).touch()
    (first, *_) = iter_sources([name])
    with pytest.raises(ImageError, match="row_group_size") as error:
        first.read()
    assert error.value.code == "unreadable"


def test_a_replaced_table_is_read_again() -> None:
    sources = list(iter_sources([write(dict(image=DATA))]))
    assert sources[0].read() == b"first"
    write(dict(image=[b"new"]))
    assert outcome(sources[0], Limits()) == b"new"
    assert outcome(sources[1], Limits()) == "changed_input"
    Path("x.parquet").unlink()
    assert outcome(sources[0], Limits()) == "not_found"
    assert pickle.loads(pickle.dumps(sources[0])) == sources[0]


# --- hostile files ----------------------------------------------------------------------------------------------------


class PlainKeys(pe.KmsClient):
    def __init__(self, config: Any):
        super().__init__()

    def wrap_key(self, key: bytes, name: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, wrapped: bytes, name: str) -> bytes:
        return base64.b64decode(wrapped)


@pytest.mark.parametrize(("plain_footer", "code"), [(False, "unsupported_format"), (True, "corrupt_archive")])
def test_encrypted_files(plain_footer: bool, code: str) -> None:
    table = pa.table(dict(image=DATA, label=LABELS))
    config = pe.EncryptionConfiguration("footer", column_keys={"column": ["image"]}, plaintext_footer=plain_footer)
    properties = pe.CryptoFactory(PlainKeys).file_encryption_properties(pe.KmsConnectionConfig(), config)
    with pq.ParquetWriter("x.parquet", table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    assert set(read("x.parquet")) == {code}
    with pytest.raises((UsageError, ImageError)) as error:
        open_labelled("x.parquet").read(0)
    assert error.value.code == code


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: b"PAR1",
        lambda data: b"PAR1PAR1",
        lambda data: data[:-1],
        lambda data: data[:-9],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-8] + b"\xff\xff\xff\xff" + b"PAR1",
        lambda data: data[:-8] + b"\0\0\0\0" + b"PAR1",
        lambda data: data[:-8] + (len(data) - 12).to_bytes(4, "little") + b"PAR1",
        lambda data: data[:4] + bytes(len(data) - 12) + data[-8:],
        lambda data: b"text",
        lambda data: b"PK\3\4" + data,
    ],
)
def test_a_damaged_file_is_one_error(change: Callable[[bytes], bytes]) -> None:
    name = write(dict(image=DATA, label=LABELS))
    Path(name).write_bytes(change(Path(name).read_bytes()))
    assert read(name) == ["corrupt_archive"]
    with pytest.raises(UsageError) as error:
        open_labelled(name)
    assert error.value.code == "corrupt_archive"


def test_a_file_that_states_too_many_rows_is_refused() -> None:
    """Nulls take almost no space, so a small file can state any number of rows."""
    table = pa.table(dict(image=pa.nulls(20_000_000, pa.binary())))
    name = write(table, row_group_size=1 << 30)
    assert read(name) == ["corrupt_archive"]
