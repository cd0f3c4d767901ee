"""One family of exceptions: every error that a user can cause has a fixed code and a hint.

The code determines the exit status of the command line and the HTTP status of the server, so that callers can branch on
`error.code` and never have to parse a message. Messages may contain file names and both sides of a mismatch. A network
client gets `public_text(code)` instead, which is fixed for each code and reveals nothing about this machine.
"""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """The meaning of a code: the statuses and the text for network clients."""

    exit_code: int
    http_status: int
    text: str  # fixed sentence, safe for a network client


CODES: dict[str, Kind] = {
    # arguments and outputs
    "bad_argument": Kind(2, 400, "an argument has a value that is not allowed"),
    "unknown_model": Kind(2, 404, "no model of that name is known"),
    "unknown_tag": Kind(2, 404, "the architecture has no checkpoint with that tag"),
    "no_weights": Kind(2, 404, "no trained weights are published for this architecture"),
    "wrong_input_size": Kind(2, 422, "the image size does not fit this model"),
    "unsupported_system": Kind(2, 501, "the operating system does not support this"),
    "missing_dependency": Kind(2, 501, "an optional package is not installed"),
    "changed_run": Kind(2, 409, "the folder holds a run with other settings or other data"),
    "other_calibration": Kind(2, 409, "the calibration is of another model, or of other settings"),
    "busy": Kind(2, 409, "another process is writing to the same folder"),
    "exists": Kind(2, 409, "something of that name exists already"),
    "alignment_refused": Kind(2, 422, "an alignment of the embeddings of two models would lose too many neighbors"),
    "damaged_run": Kind(6, 500, "files of the run are missing or damaged"),
    "damaged_receipt": Kind(6, 500, "the receipt is not what was written"),
    "not_as_recorded": Kind(6, 409, "a file or an answer differs from the receipt"),
    "output_failed": Kind(6, 500, "a result could not be written"),
    # clusters
    "cluster_failed": Kind(8, 503, "the cluster could not be used, or failed during the run"),
    "not_shared": Kind(8, 500, "a machine of the cluster cannot access the folder of the run"),
    # images
    "not_found": Kind(3, 404, "no such input"),
    "unreadable": Kind(3, 422, "the input could not be read"),
    "empty": Kind(3, 422, "the input is empty"),
    "unsupported_format": Kind(3, 415, "the image format is not supported"),
    "corrupt_image": Kind(3, 422, "the image is damaged or truncated"),
    "corrupt_archive": Kind(3, 422, "the archive or table is damaged or truncated"),
    "changed_input": Kind(3, 409, "the input has changed since it was listed"),
    "special_file": Kind(3, 422, "the input is neither a regular file nor a folder"),
    "too_many_bytes": Kind(3, 413, "the image file is larger than the limit"),
    "too_many_pixels": Kind(3, 422, "the image has more pixels than the limit"),
    "side_too_long": Kind(3, 422, "one side of the image is longer than the limit"),
    "too_elongated": Kind(3, 422, "the image is so elongated that it would exceed the pixel limit after resizing"),
    "too_complex": Kind(3, 422, "the image would take too long to decode for its size"),
    "decoder_crashed": Kind(3, 422, "the image crashed the process that decoded it"),
    "timeout": Kind(3, 422, "decoding the image took longer than allowed"),
    "bad_array": Kind(3, 422, "the array does not have the layout of an image"),
    # weights
    "truncated": Kind(4, 500, "the weight file is truncated or has extra bytes at its end"),
    "bad_format": Kind(4, 500, "the weight file is not a valid file of its format"),
    "not_weights": Kind(4, 500, "the file does not contain model weights"),
    "unsafe_format": Kind(4, 500, "the weight file has a format that can run code"),
    "hash_mismatch": Kind(4, 500, "the weight file differs from the published one"),
    "non_finite": Kind(4, 500, "the weights or the outputs of the model contain NaN or infinity"),
    "wrong_keys": Kind(4, 500, "the weights and the model have different tensors"),
    "wrong_shape": Kind(4, 500, "the weights and the model have different shapes"),
    "wrong_dtype": Kind(4, 500, "the weights and the model have different data types"),
    "bad_config": Kind(4, 500, "the configuration file of the model is invalid"),
    "conversion_failed": Kind(4, 500, "the model could not be converted for this engine"),
    "damaged_checkpoint": Kind(4, 500, "the training run has no intact checkpoint"),
    "unstable_engine": Kind(4, 500, "the engine gives different outputs for the same images"),
    "weights_not_found": Kind(4, 500, "no weight file was found at the given location"),
    # training
    "diverged": Kind(7, 500, "the loss or its gradient is not finite"),
    "interrupted": Kind(130, 503, "the work was interrupted and can be resumed"),
    # the Hub and the cache
    "offline": Kind(5, 503, "the file is not in the local cache, and offline mode is on"),
    "hub_not_found": Kind(5, 503, "the model hub has no such repository, revision or file"),
    "hub_denied": Kind(5, 503, "the model hub refused access"),
    "hub_unavailable": Kind(5, 503, "the model hub could not be reached"),
    "hub_bad_file": Kind(5, 503, "the model hub sent a damaged file"),
    "cache_failed": Kind(5, 503, "the local cache of models could not be used"),
    # the server
    "overloaded": Kind(9, 429, "the server has too much work at the moment"),
    "too_many_images": Kind(2, 413, "the request has more images than the server accepts at once"),
    "deadline_exceeded": Kind(9, 504, "the request could not be answered before its deadline"),
    "not_ready": Kind(9, 503, "the server is not ready"),
    "draining": Kind(9, 503, "the server is shutting down"),
    "worker_failed": Kind(9, 503, "the process or the model that was working on the image failed"),
    "explain_off": Kind(9, 503, "explanations are switched off, because their process failed several times in a row"),
    "promise_broken": Kind(9, 500, "the server did not keep one of its promises in a trial"),
    "cannot_listen": Kind(9, 500, "the server could not listen on its address"),
    "bad_request": Kind(2, 400, "the request is malformed"),
    "unprocessable": Kind(2, 422, "the request is well-formed, but cannot be carried out"),
    "unauthorized": Kind(2, 401, "the token is missing or wrong"),
    "forbidden_host": Kind(2, 403, "the server is not known by the host name of the request"),
    "forbidden_origin": Kind(2, 403, "the request was made by a page of another site"),
    "not_found_route": Kind(2, 404, "the server has no such path"),
    "method_not_allowed": Kind(2, 405, "the path does not support this method"),
    "slow_body": Kind(2, 408, "the body of the request did not arrive in time"),
    "body_too_large": Kind(2, 413, "the body of the request is too large"),
    "unsupported_media_type": Kind(2, 415, "the type or the encoding of the body is not supported"),
    "headers_too_large": Kind(2, 431, "the headers of the request are too large"),
    "internal_error": Kind(9, 500, "the server failed while it handled the request"),
    # image URLs, and the client of the server
    "url_refused": Kind(3, 403, "image URLs are refused, or this one does not lead to a public address"),
    "url_failed": Kind(3, 422, "no image could be fetched from the URL"),
    "server_failed": Kind(9, 503, "the server failed, or its answer could not be understood"),
    "server_unavailable": Kind(9, 503, "the server could not be reached"),
}


class TessellaError(Exception):
    """Base class of all errors that a caller can act on.

    code: a key of `CODES`. message: what was given and what was expected. hint: what to do or type next.
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
        """The exit status of the command line."""
        return CODES[self.code].exit_code

    @property
    def http_status(self) -> int:
        """The HTTP status of the server's answer."""
        return CODES[self.code].http_status


def _rebuild(cls: type[TessellaError], code: str, message: str, hint: str) -> TessellaError:
    return cls(code, message, hint=hint)


class UsageError(TessellaError, ValueError):
    """An argument, a name or a combination of arguments is not allowed."""


class ImageError(TessellaError, ValueError):
    """Bytes, a file or an array could not be read as an image; other images are not affected."""


class WeightsError(TessellaError, RuntimeError):
    """A weight file, its configuration or its download was refused; no existing model was changed."""


class TrainingError(TessellaError, RuntimeError):
    """A training run stopped; its checkpoints are intact, and it can be resumed from them."""


class RunError(TessellaError, RuntimeError):
    """A bulk run stopped; its finished shards are intact, and it can be resumed."""


class OutputError(TessellaError, RuntimeError):
    """A result could not be written; the previous file, if any, is unchanged."""


class ServeError(TessellaError, RuntimeError):
    """The server could not answer a request; the same request may succeed later."""


class HubError(WeightsError):
    """The model hub refused a request, could not be reached, or sent a wrong file."""


def public_text(code: str) -> str:
    """Return the text of a code for network clients: it contains no paths, addresses or messages of libraries."""
    return CODES[code].text
