"""Download the files of a model repository through huggingface_hub, with its cache, offline mode, token and endpoint.

The client only checks sizes, may retry a metadata request for minutes, and uses response headers as file names in its
cache. Therefore the metadata of each file is requested here first, with a limited number of attempts and
with checked headers. After the download the content is hashed and compared with the ETag, which the Hub computes from
the content: SHA-256 for large files, git's blob id for small ones. A file that is already in the cache is not hashed
again here; the reader of the file can do that with `HubFiles.sha256`.

With the client's default timeouts of 10 s, a Hub that does not answer is reported in less than a minute, and a download
that receives no data after about 66 s. HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT change these limits.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from ..errors import HubError, UsageError
from ..extras import check_installed, is_installed
from ..storage import expand_home
from .catalogue import ALTERNATIVES

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

logger = logging.getLogger(__name__)

CONFIG = "config.json"
SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
CALIBRATION = "calibration.safetensors"

ATTEMPTS = 3  # metadata requests per file while the Hub is unavailable and the file is not in the cache
LONGEST_WAIT = 10  # seconds; a longer Retry-After is reported as an error

NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
REPO = re.compile(rf"(?:{NAME}/)?{NAME}")
PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._+-]*[A-Za-z0-9_+-])?"
REVISION = re.compile(rf"{PART}(?:/{PART})*")
HEX40, HEX64 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")  # SHA-1 (commits, blob ids), SHA-256
PRINTABLE = re.compile(r"[!-~]+")  # characters allowed in a header
ETAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,127}")  # becomes a file name in the cache

T = TypeVar("T")


@dataclass(frozen=True)
class HubFiles:
    """Files in the local cache, all from one commit.

    config_path: None if the repository has no config.json. sha256: the hash of the weights according to the Hub, to be
    checked by the reader of the file; None if the Hub does not give one. revision: the commit.
    """

    config_path: Path | None
    weights_path: Path
    sha256: str | None
    revision: str


@dataclass(frozen=True)
class HubLocation:
    """A repository at a revision, and how to access it; `str()` returns its name for messages, without credentials."""

    repo: str
    revision: str
    endpoint: str
    cache_dir: Path
    token: str | bool | None = field(repr=False)

    def __str__(self) -> str:
        url = urlsplit(self.endpoint)
        return f"{self.repo}@{self.revision} on {url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def fetch_model(
    repo: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    *,
    with_calibration: bool = False,
) -> HubFiles:
    """Download the config.json and the weights of `repo`, or find them in the cache.

    The weights are model.safetensors, or pytorch_model.bin if the repository has no safetensors file. revision: a
    branch, tag or commit (None: main). cache_dir, token, endpoint: None uses the settings of huggingface_hub (HF_HOME,
    HF_TOKEN, HF_ENDPOINT); token=False sends no token. with_calibration: also download calibration.safetensors, to the
    folder of the weights, if the repository has one. If the Hub cannot be reached, or with HF_HUB_OFFLINE=1, files from
    the cache are used.
    Raises UsageError `bad_argument` before any request, and `missing_dependency` instead of downloading a
    pytorch_model.bin without PyTorch; HubError (offline, hub_not_found, hub_denied, hub_unavailable,
    hub_bad_file, cache_failed).
    """
    location = check_location(repo, revision, cache_dir, token, endpoint)
    return _or_cached(location, lambda repository: _from_hub(repository, with_calibration), _from_cache)


def fetch_config(
    repo: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> Path | None:
    """Download only the config.json of `repo`; None if it has none. Arguments and errors as in `fetch_model`.

    Raises UsageError and HubError.
    """
    location = check_location(repo, revision, cache_dir, token, endpoint)
    return _or_cached(
        location, lambda repository: _download(repository, CONFIG), lambda repository: _cached(repository, CONFIG)
    )


def _or_cached(
    location: HubLocation, online: Callable[[HubLocation], T], cached: Callable[[HubLocation], T | None]
) -> T:
    try:
        return online(location)
    except HubError as error:
        if error.code not in ("offline", "hub_unavailable"):
            raise
        result = cached(location)
        if not result:
            hint = f"{error.hint}; {_copy_hint(location)}; or {ALTERNATIVES}"
            raise HubError(error.code, error.message, hint=hint) from error
        level = logging.INFO if error.code == "offline" else logging.WARNING
        logger.log(level, "using the cached copy: %s", error.message)
        return result


def _copy_hint(location: HubLocation) -> str:
    return (
        f"or run `hf download {location.repo} --revision {location.revision}` on a connected machine and copy its "
        f"cache (~/.cache/huggingface/hub) to {location.cache_dir}"
    )


def check_location(
    repo: str, revision: str | None, cache_dir: str | Path | None, token: str | bool | None, endpoint: str | None
) -> HubLocation:
    """Return the location, without any request.

    Raises UsageError `bad_argument` for names that could lead out of the cache folder or the endpoint.
    """
    from huggingface_hub import constants

    if not (REPO.fullmatch(repo) and len(repo) <= 193 and ".." not in repo and "--" not in repo):
        raise UsageError("bad_argument", f"{repo!r} is not a repository name", hint="use organization/name")
    revision = "main" if revision is None else revision
    if not (REVISION.fullmatch(revision) and len(revision) <= 200 and ".." not in revision):
        raise UsageError("bad_argument", f"{revision!r} is not a revision", hint="use a branch, a tag or a commit")
    if isinstance(token, str) and not PRINTABLE.fullmatch(token):
        raise UsageError(
            "bad_argument", "the Hub token has characters that are not allowed in a token", hint="copy it again"
        )
    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    if not _is_address(endpoint):
        raise UsageError("bad_argument", "the Hub endpoint is not a web address", hint="HF_ENDPOINT=https://host:port")
    cache = expand_home(cache_dir or constants.HF_HUB_CACHE)
    return HubLocation(repo, revision, endpoint, cache, token)


def _is_address(endpoint: str) -> bool:
    try:
        url = urlsplit(endpoint)
        plain = PRINTABLE.fullmatch(endpoint) and "\\" not in endpoint and not (url.query or url.fragment)
        return bool(plain and url.scheme in ("http", "https") and url.hostname and url.port != 0)
    except ValueError:  # an invalid port or IPv6 address
        return False


def _from_hub(location: HubLocation, with_calibration: bool) -> HubFiles:
    config = _download(location, CONFIG)
    # fixes the commit: otherwise a push in between could pair one commit's config with another's weights
    pinned = replace(location, revision=config.parent.name) if config else location
    weights = _download(pinned, SAFETENSORS)
    if weights is None and not is_installed("torch") and _headers(pinned, PICKLE):
        check_installed("torch", f"reading {PICKLE} of {location}, which has no {SAFETENSORS},")
    if weights is None and (weights := _download(pinned, PICKLE)) is None:
        raise HubError("hub_not_found", f"{location} has neither {SAFETENSORS} nor {PICKLE}")
    if with_calibration:
        _download(replace(location, revision=weights.parent.name), CALIBRATION)
    return _hub_files(location, config, weights)


def _from_cache(location: HubLocation) -> HubFiles | None:
    """Return the files of this revision that are in the cache; no request is sent."""
    weights = _cached(location, SAFETENSORS) or _cached(location, PICKLE)
    return _hub_files(location, _cached(location, CONFIG), weights) if weights else None


def _hub_files(location: HubLocation, config: Path | None, weights: Path) -> HubFiles:
    if weights.name == PICKLE:
        logger.warning("%s has no %s, using %s", location, SAFETENSORS, PICKLE)
    blob = _blob(location, weights)
    sha256 = blob.name if blob and HEX64.fullmatch(blob.name) else None
    return HubFiles(config, weights, sha256, weights.parent.name)


def _cached(location: HubLocation, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = call_hub(
        location, lambda: try_to_load_from_cache(location.repo, name, location.cache_dir, location.revision)
    )
    if not isinstance(path, str):
        return None
    _blob(location, Path(path))
    return Path(path)


def _blob(location: HubLocation, path: Path) -> Path | None:
    """Return the blob, named by its ETag, that a cached file links to; None if the cache uses plain files."""
    if not path.is_symlink():
        return None
    blob = path.parent / path.readlink()
    if not blob.parent.samefile(path.parents[2] / "blobs"):
        raise HubError("hub_bad_file", f"{location}: {path} links to a file outside the cache", hint="delete the link")
    return blob


def _download(location: HubLocation, name: str) -> Path | None:
    """Return the cached file, which is verified after a download; None if the repository has no such file."""
    from huggingface_hub import hf_hub_download

    if HEX40.fullmatch(location.revision) and (path := _cached(location, name)):
        return path  # the content of a commit never changes
    headers = _headers(location, name)
    if headers is None:
        return None
    cached = _cached(replace(location, revision=str(headers.commit_hash)), name)
    downloaded = call_hub(
        location,
        lambda: hf_hub_download(
            location.repo,
            name,
            revision=location.revision,
            cache_dir=location.cache_dir,
            token=location.token,
            endpoint=location.endpoint,
        ),
    )
    if cached is None:
        _verify(location, Path(downloaded), str(headers.etag))
    return Path(downloaded)


def _headers(location: HubLocation, name: str) -> HfFileMetadata | None:
    """Return the checked metadata of a file; None if the repository has no such file."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    url = hf_hub_url(location.repo, name, revision=location.revision, endpoint=location.endpoint)
    attempts = 1 if _cached(location, name) else ATTEMPTS
    for attempt in range(1, attempts + 1):
        try:
            headers = call_hub(
                location,
                lambda: get_hf_file_metadata(
                    url, token=location.token, endpoint=location.endpoint, timeout=constants.HF_HUB_ETAG_TIMEOUT
                ),
            )
            break
        except HubError as error:
            if isinstance(error.__cause__, EntryNotFoundError):
                return None
            wait = _retry_after(error.__cause__) or attempt
            if error.code != "hub_unavailable" or attempt == attempts or wait > LONGEST_WAIT:
                raise
            time.sleep(wait)
    if not (HEX40.fullmatch(headers.commit_hash or "") and ETAG.fullmatch(headers.etag or "")):
        raise HubError("hub_bad_file", f"{location}: {name} was sent without a valid commit and ETag")
    if location.endpoint.startswith("https:") and not headers.location.startswith("https:"):
        raise HubError("hub_bad_file", f"{location}: the download of {name} was redirected to an unencrypted address")
    return headers


def _verify(location: HubLocation, path: Path, etag: str) -> None:
    """Compare the hash of a download with its ETag; delete a wrong file, because the cache would keep it forever."""
    if call_hub(location, lambda: _has_etag(path, etag)):
        return
    blob = _blob(location, path)
    advice = "try again: the file was removed from the cache"
    for bad in (path, blob) if blob else (path,):
        try:
            bad.unlink(missing_ok=True)  # another process may have deleted it
        except OSError as error:
            advice = f"remove {str(bad)!r}, which could not be removed ({error.strerror}), and try again"
    raise HubError(
        "hub_bad_file",
        f"{location}: the content of {path.name} does not have the announced hash {etag}",
        hint=f"{advice}; if it persists, the endpoint or a proxy alters files",
    )


def _has_etag(path: Path, etag: str) -> bool:
    """Return whether the content matches the ETag; True for ETags that are not a hash of the content."""
    if HEX64.fullmatch(etag):
        return _digest(path, "sha256") == etag
    if HEX40.fullmatch(etag):  # the Hub sends git's blob id, some mirrors send a plain SHA-1
        return etag in (_digest(path, "sha1", b"blob %d\0" % path.stat().st_size), _digest(path, "sha1"))
    return True


def _digest(path: Path, algorithm: str, prefix: bytes = b"") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, prefix, usedforsecurity=False)).hexdigest()


def call_hub(location: HubLocation, call: Callable[[], T]) -> T:
    """Run one call of the client; raises HubError for any exception, with the original as its cause."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return call()
    except Exception as error:  # of the client, of its HTTP library, or built-in ones of its transfer library
        cause: BaseException = error
        while isinstance(cause, LocalEntryNotFoundError | RuntimeError) and cause.__cause__:
            cause = cause.__cause__  # "not in the cache either", "error while uploading"
        raise _as_hub_error(location, cause) from cause


def _as_hub_error(location: HubLocation, error: BaseException) -> HubError:
    """Translate an exception; the client's text may contain signed addresses, so it only appears in the traceback."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(
            "offline",
            f"{location} is not in the cache {location.cache_dir} and HF_HUB_OFFLINE forbids downloads",
            hint="unset HF_HUB_OFFLINE",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError("hub_not_found", f"{location}: the repository has no revision {location.revision!r}")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        is_missing = isinstance(error, errors.RepositoryNotFoundError) and not isinstance(error, errors.GatedRepoError)
        if is_missing or status == 404:
            return HubError(
                "hub_not_found", f"{location}: no such repository or file", hint="a private one needs a token"
            )
        if status in (401, 403) or isinstance(error, errors.GatedRepoError | errors.DisabledRepoError):
            return HubError(
                "hub_denied",
                f"{location}: access refused (HTTP {status})",
                hint="accept the repository's conditions on its page, and check the token (HF_TOKEN)",
            )
        wait = _retry_after(error)
        hint = f"try again in {wait} s" if wait else "try again later"
        return HubError("hub_unavailable", f"{location}: the Hub responded with HTTP {status}", hint=hint)
    if isinstance(error, errors.FileMetadataError):
        return HubError(
            "hub_unavailable",
            f"{location}: the response does not come from a model hub",
            hint="check HF_ENDPOINT and proxies",
        )
    if type(error) is OSError and error.errno is None:  # the client's size check has no exception class
        return HubError("hub_bad_file", f"{location}: a file does not have the announced size", hint="try again")
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
        return HubError(
            "cache_failed",
            f"{location}: {error.strerror} in the cache {location.cache_dir}",
            hint="set HF_HOME or cache_dir to a writable folder with free space",
        )
    return HubError(
        "hub_unavailable",
        f"{location}: no complete response ({type(error).__name__})",
        hint="check the network; HF_HUB_DOWNLOAD_TIMEOUT (seconds) sets the time limit for slow connections",
    )


def _retry_after(error: BaseException | None) -> int:
    """Return the seconds that the Hub asked to wait; 0 if it did not ask."""
    response = getattr(error, "response", None)
    value = response.headers.get("Retry-After", "") if response is not None else ""
    return int(value) if re.fullmatch(r"\d{1,9}", value) else 0
