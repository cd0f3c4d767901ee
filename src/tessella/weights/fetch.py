"""A model repository's files from the Hub, through huggingface_hub: its cache, offline mode, token and endpoint.

The client checks sizes only, can repeat a metadata request for minutes, and takes file names for its cache from
response headers. So each file is asked for once before the client sees it (bounded, headers checked), and what was
downloaded is hashed against its ETag, which the Hub makes from the content: SHA-256 for large files, git's blob id for
small ones. A file already in the cache is not hashed again here; `HubFiles.sha256` lets its reader do that.

Bounds with the client's default time-outs of 10 s: under a minute for a Hub that does not answer, about 66 s without a
byte in the middle of a download. They follow HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT.
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
from .catalogue import WAYS_OUT

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

logger = logging.getLogger(__name__)

CONFIG = "config.json"
SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"

ATTEMPTS = 3  # requests for one file's metadata while the Hub is not available and the cache has nothing
LONGEST_WAIT = 10  # seconds; a longer Retry-After is reported instead of slept through

NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
REPO = re.compile(rf"(?:{NAME}/)?{NAME}")
PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._+-]*[A-Za-z0-9_+-])?"
REVISION = re.compile(rf"{PART}(?:/{PART})*")
HEX40, HEX64 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")  # SHA-1 (commits, blob ids), SHA-256
PRINTABLE = re.compile(r"[!-~]+")  # what a header may hold
ETAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,127}")  # becomes a file name in the cache

T = TypeVar("T")


@dataclass(frozen=True)
class HubFiles:
    """Files in the local cache, all of one commit.

    config_path: None when the repository has no config.json; sha256: of the weights, as the Hub states it (None when it
    states none), for whoever reads them to check; revision: the commit.
    """

    config_path: Path | None
    weights_path: Path
    sha256: str | None
    revision: str


@dataclass(frozen=True)
class Source:
    """Where to ask; its text is what messages call it, without any credential."""

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
) -> HubFiles:
    """Download `repo`'s config.json and weights, or find them in the cache.

    The weights are model.safetensors, or pytorch_model.bin where the repository has no safetensors. revision is a
    branch, tag or commit (None: main). Left at None, cache_dir, token and endpoint are huggingface_hub's own (HF_HOME,
    HF_TOKEN, HF_ENDPOINT); token=False sends none. While the Hub cannot be reached, or with HF_HUB_OFFLINE=1, files
    cached earlier are used.
    Raises UsageError (bad_argument) before any request; HubError (offline, hub_not_found, hub_denied, hub_unavailable,
    hub_bad_file, cache_failed).
    """
    return _or_cached(check_source(repo, revision, cache_dir, token, endpoint), _from_hub, _from_cache)


def fetch_config(
    repo: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> Path | None:
    """`repo`'s config.json alone, by the rules and with the errors of `fetch_model`; None when it has none."""
    source = check_source(repo, revision, cache_dir, token, endpoint)
    return _or_cached(source, lambda asked: _download(asked, CONFIG), lambda asked: _cached(asked, CONFIG))


def _or_cached(source: Source, online: Callable[[Source], T], cached: Callable[[Source], T | None]) -> T:
    try:
        return online(source)
    except HubError as error:
        if error.code not in ("offline", "hub_unavailable"):
            raise
        found = cached(source)
        if not found:
            hint = f"{error.hint}; {_elsewhere(source)}; or {WAYS_OUT}"
            raise HubError(error.code, error.message, hint=hint) from error
        level = logging.INFO if error.code == "offline" else logging.WARNING
        logger.log(level, "using the cached copy: %s", error.message)
        return found


def _elsewhere(source: Source) -> str:
    return (
        f"or run `hf download {source.repo} --revision {source.revision}` on a machine with a network and copy its "
        f"cache (~/.cache/huggingface/hub) to {source.cache_dir}"
    )


def check_source(
    repo: str, revision: str | None, cache_dir: str | Path | None, token: str | bool | None, endpoint: str | None
) -> Source:
    """Refuse names that could leave the cache folder or the endpoint, before anything is asked or written."""
    from huggingface_hub import constants

    if not (REPO.fullmatch(repo) and len(repo) <= 193 and ".." not in repo and "--" not in repo):
        raise UsageError("bad_argument", f"{repo!r} is not a repository name", hint="use organisation/name")
    revision = "main" if revision is None else revision
    if not (REVISION.fullmatch(revision) and len(revision) <= 200 and ".." not in revision):
        raise UsageError("bad_argument", f"{revision!r} is not a revision", hint="use a branch, a tag or a commit")
    if isinstance(token, str) and not PRINTABLE.fullmatch(token):
        raise UsageError("bad_argument", "the Hub token has characters that no token has", hint="copy it again")
    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    if not _is_address(endpoint):
        raise UsageError("bad_argument", "the Hub endpoint is not a web address", hint="HF_ENDPOINT=https://host:port")
    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    return Source(repo, revision, endpoint, cache, token)


def _is_address(endpoint: str) -> bool:
    try:
        url = urlsplit(endpoint)
        plain = PRINTABLE.fullmatch(endpoint) and "\\" not in endpoint and not (url.query or url.fragment)
        return bool(plain and url.scheme in ("http", "https") and url.hostname and url.port != 0)
    except ValueError:  # a port or an IPv6 address that is none
        return False


def _from_hub(source: Source) -> HubFiles:
    config = _download(source, CONFIG)
    # from here on the commit is fixed, so that a push in between cannot pair one commit's config with another's weights
    pinned = replace(source, revision=config.parent.name) if config else source
    weights = _download(pinned, SAFETENSORS)
    if weights is None and (weights := _download(pinned, PICKLE)) is None:
        raise HubError("hub_not_found", f"{source} has neither {SAFETENSORS} nor {PICKLE}")
    return _described(source, config, weights)


def _from_cache(source: Source) -> HubFiles | None:
    """What an earlier call left in the cache for this revision; nothing is asked of the network."""
    weights = _cached(source, SAFETENSORS) or _cached(source, PICKLE)
    return _described(source, _cached(source, CONFIG), weights) if weights else None


def _described(source: Source, config: Path | None, weights: Path) -> HubFiles:
    if weights.name == PICKLE:
        logger.warning("%s has no %s, using %s", source, SAFETENSORS, PICKLE)
    blob = _blob(source, weights)
    sha256 = blob.name if blob and HEX64.fullmatch(blob.name) else None
    return HubFiles(config, weights, sha256, weights.parent.name)


def _cached(source: Source, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = ask(source, lambda: try_to_load_from_cache(source.repo, name, source.cache_dir, source.revision))
    if not isinstance(found, str):
        return None
    _blob(source, Path(found))
    return Path(found)


def _blob(source: Source, path: Path) -> Path | None:
    """The blob, named by its ETag, that a cached file links to; None where the cache had to make plain files."""
    if not path.is_symlink():
        return None
    blob = path.parent / path.readlink()
    if not blob.parent.samefile(path.parents[2] / "blobs"):
        raise HubError("hub_bad_file", f"{source}: {path} links out of the cache", hint="delete the link")
    return blob


def _download(source: Source, name: str) -> Path | None:
    """The cached file, verified if it was downloaded just now; None when the repository has no such file."""
    from huggingface_hub import hf_hub_download

    if HEX40.fullmatch(source.revision) and (path := _cached(source, name)):
        return path  # a commit never changes
    headers = _headers(source, name)
    if headers is None:
        return None
    known = _cached(replace(source, revision=str(headers.commit_hash)), name)
    found = ask(
        source,
        lambda: hf_hub_download(
            source.repo,
            name,
            revision=source.revision,
            cache_dir=source.cache_dir,
            token=source.token,
            endpoint=source.endpoint,
        ),
    )
    if known is None:
        _verify(source, Path(found), str(headers.etag))
    return Path(found)


def _headers(source: Source, name: str) -> HfFileMetadata | None:
    """What the Hub says about a file, checked; None when the repository has no such file."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    url = hf_hub_url(source.repo, name, revision=source.revision, endpoint=source.endpoint)
    attempts = 1 if _cached(source, name) else ATTEMPTS
    for attempt in range(1, attempts + 1):
        try:
            found = ask(
                source,
                lambda: get_hf_file_metadata(
                    url, token=source.token, endpoint=source.endpoint, timeout=constants.HF_HUB_ETAG_TIMEOUT
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
    if not (HEX40.fullmatch(found.commit_hash or "") and ETAG.fullmatch(found.etag or "")):
        raise HubError("hub_bad_file", f"{source}: {name} came without a usable commit and ETag")
    if source.endpoint.startswith("https:") and not found.location.startswith("https:"):
        raise HubError("hub_bad_file", f"{source}: the download of {name} was redirected to an unencrypted address")
    return found


def _verify(source: Source, path: Path, etag: str) -> None:
    """Hash a fresh download against its ETag; one that differs leaves the cache, which would keep it for good."""
    if ask(source, lambda: _has_etag(path, etag)):
        return
    blob = _blob(source, path)
    for bad in (path, blob) if blob else (path,):
        bad.unlink(missing_ok=True)  # another process may have found out too
    raise HubError(
        "hub_bad_file",
        f"{source}: the content of {path.name} does not have the hash {etag} that was announced",
        hint="try again: the file was removed from the cache; if it persists, the endpoint or a proxy alters files",
    )


def _has_etag(path: Path, etag: str) -> bool:
    """Whether the content fits the ETag, for the three kinds made from content; other kinds say nothing about it."""
    if HEX64.fullmatch(etag):
        return _digest(path, "sha256") == etag
    if HEX40.fullmatch(etag):  # the Hub sends git's blob id, some mirrors a plain SHA-1
        return etag in (_digest(path, "sha1", b"blob %d\0" % path.stat().st_size), _digest(path, "sha1"))
    return True


def _digest(path: Path, algorithm: str, prefix: bytes = b"") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, prefix, usedforsecurity=False)).hexdigest()


def ask(source: Source, call: Callable[[], T]) -> T:
    """One call of the client; whatever goes wrong becomes a coded error with the client's as its cause."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return call()
    except Exception as error:  # the client's own, its HTTP library's, built-in ones from its transfer library
        cause: BaseException = error
        while isinstance(cause, LocalEntryNotFoundError | RuntimeError) and cause.__cause__:
            cause = cause.__cause__  # "not in the cache either", "error while uploading"
        raise _coded(source, cause) from cause


def _coded(source: Source, error: BaseException) -> HubError:
    """The error in this project's words: the client's text may hold signed addresses, so it stays in the traceback."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(
            "offline",
            f"{source} is not in the cache {source.cache_dir} and HF_HUB_OFFLINE forbids downloads",
            hint="unset HF_HUB_OFFLINE",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError("hub_not_found", f"{source}: the repository has no revision {source.revision!r}")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        gone = isinstance(error, errors.RepositoryNotFoundError) and not isinstance(error, errors.GatedRepoError)
        if gone or status == 404:
            return HubError(
                "hub_not_found", f"{source}: no such repository or file", hint="a private one needs a token"
            )
        if status in (401, 403) or isinstance(error, errors.GatedRepoError | errors.DisabledRepoError):
            return HubError(
                "hub_denied",
                f"{source}: access refused (HTTP {status})",
                hint="accept the repository's conditions on its page, and check the token (HF_TOKEN)",
            )
        wait = _retry_after(error)
        hint = f"try again in {wait} s" if wait else "try again later"
        return HubError("hub_unavailable", f"{source}: the Hub answered HTTP {status}", hint=hint)
    if isinstance(error, errors.FileMetadataError):
        return HubError("hub_unavailable", f"{source}: the answer is not a Hub's", hint="check HF_ENDPOINT and proxies")
    if type(error) is OSError and error.errno is None:  # the client's size check has no class of its own
        return HubError("hub_bad_file", f"{source}: a file came in another size than announced", hint="try again")
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
        return HubError(
            "cache_failed",
            f"{source}: {error.strerror} in the cache {source.cache_dir}",
            hint="set HF_HOME or cache_dir to a folder with room that you may write",
        )
    return HubError(
        "hub_unavailable",
        f"{source}: no complete answer ({type(error).__name__})",
        hint="check the network; HF_HUB_DOWNLOAD_TIMEOUT (seconds) allows a slow one more time",
    )


def _retry_after(error: BaseException | None) -> int:
    """Seconds the Hub asked to wait, 0 when it did not say."""
    response = getattr(error, "response", None)
    value = response.headers.get("Retry-After", "") if response is not None else ""
    return int(value) if re.fullmatch(r"\d{1,9}", value) else 0
