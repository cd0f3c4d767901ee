"""What the bytes of an image file say before an image library sees them; no image library is imported here.

Each module reads the structure of one format (with limits on how much structure it reads), refuses layouts that the
library is known to read wrongly or not at all, and removes metadata, so that metadata cannot decide about pixels.
`data/decode.py` hands what is left to the library.
"""

from __future__ import annotations

from ...errors import ImageError


def unsupported(form: str, layout: str) -> ImageError:
    """The file may be sound, but its pixels cannot be read correctly here."""
    return ImageError(
        "unsupported_format",
        f"this {form} file has {layout}, which cannot be decoded",
        hint="convert it to 8-bit RGB first",
    )


def damaged(form: str, what: str) -> ImageError:
    return ImageError("corrupt_image", f"the {form} file is damaged: {what}")


def too_complex(form: str, what: str) -> ImageError:
    """Decoding would take many times as long as the number of pixels suggests."""
    return ImageError("too_complex", f"the {form} file has {what}, which would take too long to decode")
