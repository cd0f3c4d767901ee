"""One exception family: every error a user can cause has a fixed code, and carries what to do about it.

The code decides the command line's exit status and the server's HTTP status, so callers can branch on
`error.code` and never have to parse a message. Messages may name files and both sides of a mismatch; the text that
may travel to a network client is `public_text(code)`, which is fixed per code and names nothing of this machine.
"""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    exit_code: int
    http_status: int
    text: str  # fixed sentence, safe for a network client


CODES: dict[str, Kind] = {
    # asked for something that cannot be
    "bad_argument": Kind(2, 400, "an argument has a value that is not allowed"),
    "unknown_model": Kind(2, 404, "no model of that name is known"),
    "unknown_tag": Kind(2, 404, "the architecture is known, but it has no checkpoint of that tag"),
    "no_weights": Kind(2, 404, "no trained weights are published for this architecture"),
    "wrong_input_size": Kind(2, 422, "the image size does not fit this model"),
    "missing_dependency": Kind(2, 501, "an optional package is not installed"),
    "changed_run": Kind(2, 409, "the folder holds a run with other settings or other data"),
    "busy": Kind(2, 409, "another process is writing to the same folder"),
    "damaged_run": Kind(6, 500, "files of the run are missing or are not those that were written"),
    "output_failed": Kind(6, 500, "a result could not be written"),
    # a cluster
    "cluster_failed": Kind(8, 503, "the cluster could not be used, or lost what worked in it"),
    "not_shared": Kind(8, 500, "a machine of the cluster does not have the folder of the run"),
    # images
    "not_found": Kind(3, 404, "no such input"),
    "unreadable": Kind(3, 422, "the input could not be read"),
    "empty": Kind(3, 422, "the input has no bytes"),
    "unsupported_format": Kind(3, 415, "the image format is not one of those accepted"),
    "corrupt_image": Kind(3, 422, "the image is damaged or cut off"),
    "corrupt_archive": Kind(3, 422, "the archive or table is damaged or cut off"),
    "changed_input": Kind(3, 409, "the input is not the one that was listed"),
    "special_file": Kind(3, 422, "the input is neither a regular file nor a folder"),
    "too_many_bytes": Kind(3, 413, "the image file is larger than the limit"),
    "too_many_pixels": Kind(3, 422, "the image has more pixels than the limit"),
    "side_too_long": Kind(3, 422, "one side of the image is longer than the limit"),
    "too_elongated": Kind(3, 422, "the image is so elongated that resizing it would exceed the pixel limit"),
    "too_complex": Kind(3, 422, "the image would take longer to decode than its size justifies"),
    "decoder_crashed": Kind(3, 422, "the image ended the process that decoded it"),
    "timeout": Kind(3, 422, "the image took longer to decode than is allowed"),
    "bad_array": Kind(3, 422, "the array is not an image of a known layout"),
    # weights
    "truncated": Kind(4, 500, "the weight file is cut off or has bytes left over"),
    "bad_format": Kind(4, 500, "the weight file is not a valid file of its format"),
    "not_weights": Kind(4, 500, "the file is something other than model weights"),
    "unsafe_format": Kind(4, 500, "the weight file is of a format that can run code"),
    "hash_mismatch": Kind(4, 500, "the weight file is not the published one"),
    "non_finite": Kind(4, 500, "the weights, or what they give, contain NaN or infinity"),
    "wrong_keys": Kind(4, 500, "the weights have other tensors than the model"),
    "wrong_shape": Kind(4, 500, "the weights have other shapes than the model"),
    "wrong_dtype": Kind(4, 500, "the weights have another number type than the model"),
    "bad_config": Kind(4, 500, "the model's configuration file is not usable"),
    "conversion_failed": Kind(4, 500, "the model could not be converted for this engine"),
    "damaged_checkpoint": Kind(4, 500, "no whole checkpoint of the training run is left"),
    "weights_not_found": Kind(4, 500, "no weight file was found at the place given"),
    # training
    "diverged": Kind(7, 500, "the loss or its gradient is not a finite number"),
    "interrupted": Kind(130, 503, "the work was stopped from outside, and can go on"),
    # the Hub
    "offline": Kind(5, 503, "the file is not in the local cache and the network is switched off"),
    "hub_not_found": Kind(5, 503, "the model hub has no such repository, revision or file"),
    "hub_denied": Kind(5, 503, "the model hub refused access"),
    "hub_unavailable": Kind(5, 503, "the model hub could not be reached"),
    "hub_bad_file": Kind(5, 503, "the model hub sent a damaged file"),
    "cache_failed": Kind(5, 503, "the local cache of downloaded models could not be used"),
}


class TessellaError(Exception):
    """Base of all errors that a caller can act on.

    code: a key of `CODES`; message: what was given and what was expected; hint: what to type next.
    """

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        assert code in CODES, f"unregistered error code {code!r}"
        super().__init__(code, message, hint)  # all three, so that the error survives pickling between processes
        self.code = code
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.code, self.message, self.hint))

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    @property
    def exit_code(self) -> int:
        return CODES[self.code].exit_code

    @property
    def http_status(self) -> int:
        return CODES[self.code].http_status


def _rebuild(cls: type[TessellaError], code: str, message: str, hint: str) -> TessellaError:
    return cls(code, message, hint=hint)


class UsageError(TessellaError, ValueError):
    """An argument, a name or a combination of them cannot be served."""


class ImageError(TessellaError, ValueError):
    """Bytes, a file or an array that did not become an image; nothing else was harmed."""


class WeightsError(TessellaError, RuntimeError):
    """A weight file, its configuration or its download was refused; no live model was changed."""


class TrainingError(TessellaError, RuntimeError):
    """A training run stopped; its checkpoints are whole, and it goes on from them."""


class RunError(TessellaError, RuntimeError):
    """A bulk run stopped; its finished shards are whole, and it goes on with the others."""


class OutputError(TessellaError, RuntimeError):
    """A result could not be written; the previous file, if any, is unchanged."""


class HubError(WeightsError):
    """The model hub did not deliver."""


def public_text(code: str) -> str:
    """The sentence for `code` that may be sent to a stranger: no path, address or library message in it."""
    return CODES[code].text
