"""What the supervisor and the workers of the isolated decoder exchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ...errors import ImageError
from ..decode import Mode, Pixels, Policy
from ..limits import DEFAULT_LIMITS, Limits
from ..source import Source
from ..spec import InputSpec

SLOTS = 4  # images sent to a worker at once, so that it never waits; its file in memory has room for as many
SLOT_BYTES = 3 * DEFAULT_LIMITS.intermediate  # distance of the slots: no input of a model is larger
ORDER_BYTES = 8  # an order to the fork server: 0 with two descriptors forks a worker, a process id ends that one
NOT_REAPED = 1 << 20  # instead of an exit code: killed, but still waiting in the kernel
LONG_READ = 0  # an answer that announces a long read


class DecodeSettings(NamedTuple):
    """How every image of a decoder is decoded and prepared; the same for all workers."""

    spec: InputSpec
    policy: Policy
    mode: Mode
    limits: Limits
    nice: int = 0  # how far the priority of the workers is below that of their parent, as for `os.nice`


@dataclass(frozen=True, kw_only=True)
class EncodedImage(Source):
    """An image in memory, which is prepared by a spec of its own instead of the decoder's."""

    key: str = ""
    path: str = ""
    data: bytes
    spec: InputSpec

    def read(self, limits: Limits = DEFAULT_LIMITS) -> bytes:
        """Return the encoded bytes. Raises ImageError `too_many_bytes` if they exceed `limits.bytes`."""
        if len(self.data) > limits.bytes:
            raise ImageError("too_many_bytes", f"the image has {len(self.data):,} bytes, the limit is {limits.bytes:,}")
        return self.data


@dataclass(frozen=True, kw_only=True)
class ListedImage(Source):
    """An image that the decoding process reads itself, and prepares by a spec and in a mode of its own."""

    key: str = ""
    path: str = ""
    listed: Source
    spec: InputSpec
    mode: Mode = "fast"  # for people to look at

    def read(self, limits: Limits = DEFAULT_LIMITS) -> bytes:
        """Return the encoded bytes; raises as the `read` of the source."""
        return self.listed.read(limits)


class Decoded(NamedTuple):
    """The result for one source: pixels or an error, and facts for its record."""

    pixels: Pixels | None  # (spec.height, spec.width, 3) uint8, the model's input; None if there is an error
    error: ImageError | None
    sha256: str  # hex digest of the encoded bytes; "" if they could not be read
    bytes: int  # number of encoded bytes; 0 if they could not be read
    width: int  # of the decoded image, upright, in pixels; 0 if it was not decoded
    height: int

    @property
    def outcome(self) -> Pixels | ImageError:
        """The pixels (height, width, 3), or else the error, as `Predictor.decoded_outputs` takes it."""
        outcome = self.error if self.pixels is None else self.pixels
        assert outcome is not None
        return outcome
