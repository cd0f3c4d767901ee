"""Columns of Parquet tables that hold images and labels, found by their names and Arrow types.

    columns                                                          types
    IMAGE_COLUMNS: the first name that is present and fits           bytes, lists of uint8, paths as text, or structs
                                                                     with bytes or a path (Hugging Face)
    LABEL_COLUMNS: likewise, for labeled data                       integers or class names

Upper and lower case are equal. Arrow's large, view and dictionary variants of these types are accepted, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = (
    "image",
    "images",
    "img",
    "imgs",
    "image.bytes",
    "image_bytes",
    "img_bytes",
    "image_data",
    "bytes",
    "data",
    "content",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "photo",
    "picture",
    "image_path",
    "img_path",
    "image_file",
    "file_path",
    "filepath",
    "file_name",
    "filename",
    "path",
    "file",
)
LABEL_COLUMNS = (
    "label",
    "labels",
    "class",
    "classes",
    "cls",
    "target",
    "targets",
    "category",
    "fine_label",
    "fine_labels",
    "class_name",
    "label_name",
    "class_label",
    "class_id",
    "label_id",
    "coarse_label",
)


class ImageColumn(NamedTuple):
    """A column of images. kind: "bytes", "list" of numbers from 0 to 255, "path", or "struct" with bytes or a path."""

    name: str
    kind: Literal["bytes", "list", "path", "struct"]


def find_image_column(schema: pa.Schema) -> ImageColumn | None:
    """Return the column of an Arrow schema that holds the images; None if no column fits."""
    by_name = {field.name.lower(): field for field in reversed(list(schema))}
    for name in IMAGE_COLUMNS:
        if (field := by_name.get(name)) is not None and (kind := _image_kind(field.type)):
            return ImageColumn(field.name, kind)
    return None


def find_label_column(schema: pa.Schema) -> str | None:
    """Return the name of the column that holds one label per row; None if there is none."""
    by_name = {name.lower(): name for name in reversed(schema.names)}
    return next((by_name[name] for name in LABEL_COLUMNS if name in by_name), None)


def storage_type(arrow_type: pa.DataType) -> pa.DataType:
    """Return the Arrow type of the values, without the dictionary and extension types around it."""
    import pyarrow as pa

    while True:
        if pa.types.is_dictionary(arrow_type):
            arrow_type = arrow_type.value_type
        elif isinstance(arrow_type, pa.BaseExtensionType):
            arrow_type = arrow_type.storage_type
        else:
            return arrow_type


def is_text(storage: pa.DataType) -> bool:
    """Return whether a `storage_type` is one of Arrow's string types."""
    import pyarrow as pa

    types = pa.types
    return bool(types.is_string(storage) or types.is_large_string(storage) or types.is_string_view(storage))


def describe_mismatch(path: str, schema: pa.Schema, *, labelled: bool = False) -> tuple[str, str]:
    """Return (message, hint) for a table without a column of images, or of labels if `labelled`."""
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)[:200]
    expected = "a column image of bytes, of paths, or of a struct with bytes or path"
    others = ", ".join(IMAGE_COLUMNS[1:4])
    hint = f"rename the column that holds the images to image; {others} and other names are also recognized"
    if labelled:
        expected += ", and a column label"
        hint = "rename the columns to image and label"
    return f"{path!r} has the columns {columns}, expected {expected}", hint


def _image_kind(arrow_type: pa.DataType) -> Literal["bytes", "list", "path", "struct"] | None:
    import pyarrow as pa

    types, storage = pa.types, storage_type(arrow_type)
    if types.is_struct(storage):
        fields = {storage.field(i).name: storage_type(storage.field(i).type) for i in range(storage.num_fields)}
        fits = ("bytes" in fields and _is_binary(fields["bytes"])) or ("path" in fields and is_text(fields["path"]))
        return "struct" if fits else None
    if _is_binary(storage):
        return "bytes"
    if is_text(storage):
        return "path"
    is_list = types.is_list(storage) or types.is_large_list(storage) or types.is_fixed_size_list(storage)
    return "list" if is_list and storage.value_type in (pa.uint8(), pa.int8()) else None


def _is_binary(storage: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_binary(storage)
        or pa.types.is_large_binary(storage)
        or pa.types.is_binary_view(storage)
        or pa.types.is_fixed_size_binary(storage)
    )
