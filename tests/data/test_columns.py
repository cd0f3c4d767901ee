"""Columns of Parquet tables: which of them hold images and labels."""

from __future__ import annotations

import pyarrow as pa
import pytest

from tessella.data.columns import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    ImageColumn,
    describe_mismatch,
    find_image_column,
    find_label_column,
    is_text,
    storage_type,
)


@pytest.mark.parametrize(
    ("arrow_type", "kind"),
    [
        (pa.binary(), "bytes"),
        (pa.large_binary(), "bytes"),
        (pa.binary_view(), "bytes"),
        (pa.binary(16), "bytes"),
        (pa.dictionary(pa.int8(), pa.binary()), "bytes"),
        (pa.list_(pa.uint8()), "list"),
        (pa.large_list(pa.int8()), "list"),
        (pa.list_(pa.uint8(), 12), "list"),
        (pa.string(), "path"),
        (pa.string_view(), "path"),
        (pa.dictionary(pa.int32(), pa.large_string()), "path"),
        (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), "struct"),
        (pa.struct([("path", pa.string())]), "struct"),
    ],
)
def test_types_that_hold_images(arrow_type: pa.DataType, kind: str) -> None:
    schema = pa.schema([("id", pa.int64()), ("image", arrow_type)])
    assert find_image_column(schema) == ("image", kind)


@pytest.mark.parametrize(
    "arrow_type",
    [
        pa.int64(),
        pa.list_(pa.float32()),
        pa.list_(pa.uint16()),
        pa.struct([("bytes", pa.int64())]),
        pa.struct([("url", pa.string())]),
        pa.null(),
    ],
)
def test_types_that_hold_no_images(arrow_type: pa.DataType) -> None:
    assert find_image_column(pa.schema([("image", arrow_type)])) is None


def test_columns_are_preferred_by_name_and_not_by_position() -> None:
    fields = [(name, pa.binary()) for name in reversed(IMAGE_COLUMNS)]
    assert find_image_column(pa.schema(fields)) == ImageColumn(IMAGE_COLUMNS[0], "bytes")
    assert find_image_column(pa.schema([("image", pa.int64()), *fields[:-1]])) == ImageColumn(IMAGE_COLUMNS[1], "bytes")
    labels = pa.schema([(name, pa.int64()) for name in reversed(LABEL_COLUMNS)])
    assert find_label_column(labels) == LABEL_COLUMNS[0]


def test_names_are_compared_without_case_and_keep_their_spelling() -> None:
    schema = pa.schema([("IMG", pa.binary()), ("Fine_Label", pa.int64())])
    assert find_image_column(schema) == ImageColumn("IMG", "bytes")
    assert find_label_column(schema) == "Fine_Label"


def test_tables_without_labels() -> None:
    assert find_label_column(pa.schema([("image", pa.binary()), ("caption", pa.string())])) is None


def test_the_storage_type_is_inside_dictionaries_and_extensions() -> None:
    assert storage_type(pa.dictionary(pa.int8(), pa.string())) == pa.string()
    assert storage_type(pa.uuid()) == pa.binary(16)
    assert storage_type(pa.int32()) == pa.int32()
    assert is_text(storage_type(pa.dictionary(pa.int8(), pa.large_string())))
    assert not is_text(pa.binary())


def test_the_message_for_a_mismatch_lists_the_columns() -> None:
    schema = pa.schema([("pixels", pa.int64()), ("caption", pa.string())])
    message, hint = describe_mismatch("x.parquet", schema)
    assert message.startswith("'x.parquet' has the columns pixels (int64), caption (string), expected a column image")
    assert "label" not in message
    assert "rename" in hint
    message, hint = describe_mismatch("x.parquet", schema, labelled=True)
    assert message.endswith("and a column label")
    assert hint == "rename the columns to image and label"
    many = pa.schema([(f"column{i}", pa.int64()) for i in range(1000)])
    assert len(describe_mismatch("x.parquet", many)[0]) < 400
