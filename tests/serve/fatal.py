"""An image that ends the process that reads it. The decoding processes import this module."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from tessella.data.isolated.protocol import EncodedImage
from tessella.data.limits import DEFAULT_LIMITS, Limits

POISON = b"poison"


@dataclass(frozen=True, kw_only=True)
class FatalImage(EncodedImage):
    """As EncodedImage, but the bytes POISON kill the process."""

    def read(self, limits: Limits = DEFAULT_LIMITS) -> bytes:
        if self.data == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(limits)
