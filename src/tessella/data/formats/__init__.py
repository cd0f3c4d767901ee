"""Read the structure of image files before an image library sees them; no image library is imported here.

Each module reads one format, with limits on the amount of structure. It refuses layouts that the library reads wrongly
or not at all, and removes metadata, so that metadata cannot affect the pixels. `data/decode.py` passes the rest to the
library.
"""

from __future__ import annotations

from ...errors import ImageError


def unsupported(form: str, layout: str) -> ImageError:
    """Return the error for a valid file whose pixels cannot be decoded correctly."""
    return ImageError(
        "unsupported_format",
        f"this {form} file has {layout}, which cannot be decoded",
        hint="convert it to 8-bit RGB first",
    )


def damaged(form: str, what: str) -> ImageError:
    """Return the error for a damaged file."""
    return ImageError("corrupt_image", f"the {form} file is damaged: {what}")


def too_complex(form: str, what: str) -> ImageError:
    """Return the error for a file whose decoding would take far longer than its number of pixels suggests."""
    return ImageError("too_complex", f"the {form} file has {what}, which would take too long to decode")
