"""The real huggingface_hub client against a hub on loopback: faults, offline use, races, names, tokens.

Most tests run the client in this process with its settings patched; what needs settings from the environment or a clean
process (audit hooks, races) runs in a subprocess.
"""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfFileMetadata, constants

from tessella.errors import HubError, TessellaError, UsageError
from tessella.models import build
from tessella.weights import fetch, save_pretrained
from tessella.weights.fetch import HubFiles, fetch_model

from .hub import FakeHub, blob_id, online, sha256

REPO = "org/tiny"
CONFIG = json.dumps({"architecture": "convmixer_256_8_ks3_p4"}).encode()
WEIGHTS = random.Random(0).randbytes(300_000)  # they are not parsed here
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS}
SECRET = "hf_thisMustNotBeSeen"
REPEATS = 3  # state that the client keeps must not affect the next call


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        hub.add(REPO, FILES)
        yield hub


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """Put the client online; the list contains the seconds of its requested waits."""
    return online(monkeypatch, tmp_path)


def fetch_from(hub: FakeHub, cache: Path, **how: Any) -> HubFiles:
    return fetch_model(how.pop("repo", REPO), cache_dir=cache, endpoint=hub.url, **how)


def check_whole(cache: Path) -> int:
    """Check that every visible file in the cache has the content of its name; return the number of blobs."""
    blobs = list(cache.glob("models--*/blobs/*"))
    for blob in blobs:
        content = blob.read_bytes()
        assert blob.name in (sha256(content), blob_id(content))
    for link in cache.glob("models--*/snapshots/*/*"):
        assert link.exists()
    return len(blobs)


def check_fetched(files: HubFiles) -> None:
    assert files.weights_path.read_bytes() == WEIGHTS
    assert files.config_path is not None
    assert files.config_path.read_bytes() == CONFIG
    assert files.sha256 == sha256(WEIGHTS)


# --- downloads ---


def test_both_files_of_a_commit_are_downloaded(hub: FakeHub, slept: list[float], tmp_path: Path) -> None:
    files = fetch_from(hub, tmp_path)
    check_fetched(files)
    assert files.revision == hub.repos[REPO].refs["main"]
    assert check_whole(tmp_path) == 2
    assert slept == []


def test_a_second_call_transfers_nothing(hub: FakeHub, slept: list[float], tmp_path: Path) -> None:
    fetch_from(hub, tmp_path)
    gets = hub.count("GET", "")
    check_fetched(fetch_from(hub, tmp_path))
    assert hub.count("GET", "") == gets


def test_a_commit_in_the_cache_needs_no_request(hub: FakeHub, slept: list[float], tmp_path: Path) -> None:
    files = fetch_from(hub, tmp_path)
    before = len(hub.requests)
    assert fetch_from(hub, tmp_path, revision=files.revision) == files
    assert len(hub.requests) == before


def test_revisions(hub: FakeHub, slept: list[float], tmp_path: Path) -> None:
    old = hub.repos[REPO].refs["main"]
    hub.add(REPO, {**FILES, "model.safetensors": b"newer"}, "main")
    hub.add(REPO, {**FILES, "model.safetensors": b"side"}, "refs/pr/1")
    assert fetch_from(hub, tmp_path).weights_path.read_bytes() == b"newer"
    assert fetch_from(hub, tmp_path, revision="refs/pr/1").weights_path.read_bytes() == b"side"
    assert fetch_from(hub, tmp_path, revision=old).weights_path.read_bytes() == WEIGHTS


def test_files_of_different_commits_are_never_combined(
    hub: FakeHub, slept: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = fetch._verify

    def push_then_verify(source: Any, path: Path, etag: str) -> None:
        if path.name == "config.json":
            hub.add(REPO, {"config.json": b"{}", "model.safetensors": b"pushed"})
        verify(source, path, etag)

    monkeypatch.setattr(fetch, "_verify", push_then_verify)
    check_fetched(fetch_from(hub, tmp_path))


def test_a_pickle_is_downloaded_only_if_there_is_no_safetensors_file(
    hub: FakeHub, slept: list[float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add("org/old", {"config.json": CONFIG, "pytorch_model.bin": WEIGHTS})
    hub.add("org/both", {**FILES, "pytorch_model.bin": b"pickle"})
    with caplog.at_level(logging.WARNING):
        assert fetch_from(hub, tmp_path, repo="org/both").weights_path.name == "model.safetensors"
        assert not caplog.messages
        assert fetch_from(hub, tmp_path, repo="org/old").weights_path.name == "pytorch_model.bin"
    assert any("org/old" in line and "no model.safetensors" in line for line in caplog.messages)


def test_a_repository_without_config_or_weights(hub: FakeHub, slept: list[float], tmp_path: Path) -> None:
    hub.add("org/bare", {"model.safetensors": WEIGHTS})
    assert fetch_from(hub, tmp_path, repo="org/bare").config_path is None
    hub.add("org/empty", {"README.md": b"nothing"})
    with pytest.raises(HubError, match=r"neither model\.safetensors nor pytorch_model\.bin") as caught:
        fetch_from(hub, tmp_path, repo="org/empty")
    assert caught.value.code == "hub_not_found"


# --- faults ---

OK = ""
FAULTS: dict[str, tuple[str, list[dict[str, Any]]]] = {  # name -> (error code or OK, the faults in order)
    "reset at 0": ("hub_unavailable", [dict(kind="reset", times=9)]),
    "reset at 1": ("hub_unavailable", [dict(kind="reset", at=1, times=9)]),
    "reset at 200000": ("hub_unavailable", [dict(kind="reset", at=200_000, times=9)]),
    "cut once, resumed": (OK, [dict(kind="truncate", at=100_000)]),
    "cut three times": (OK, [dict(kind="truncate", at=70_000, times=3)]),
    "cut without progress": ("hub_unavailable", [dict(kind="truncate", at=0, times=99)]),
    "Range ignored": (OK, [dict(kind="truncate", at=100_000), dict(kind="ignore_range", times=9)]),
    "stall once": (OK, [dict(kind="stall", at=100_000)]),
    "stall at the first byte": ("hub_unavailable", [dict(kind="stall", times=99)]),
    "stall of the metadata": ("hub_unavailable", [dict(kind="stall", method="HEAD", times=99)]),
    "corrupted bytes": ("hub_bad_file", [dict(kind="corrupt")]),
    "gzip body": (OK, [dict(kind="gzip")]),
    "gzip body, cut once": (OK, [dict(kind="gzip", times=9), dict(kind="truncate", at=100_000)]),
    "503 burst": (OK, [dict(kind="status", method="HEAD", status=503, times=2)]),
    "500 for ever": ("hub_unavailable", [dict(kind="status", method="HEAD", status=500, times=99)]),
    "502 on the file": ("hub_unavailable", [dict(kind="status", status=502, times=99)]),
    "429, short wait": (OK, [dict(kind="status", method="HEAD", status=429, headers={"Retry-After": "2"})]),
    "429, long wait": (
        "hub_unavailable",
        [dict(kind="status", method="HEAD", status=429, headers={"Retry-After": "3600"}, times=99)],
    ),
    "404 on the file": ("hub_not_found", [dict(kind="status", status=404, times=9)]),
    "403 on the file": ("hub_denied", [dict(kind="status", status=403, times=9)]),
    "wrong ETag": (
        "hub_bad_file",
        [dict(kind="headers", method="HEAD", times=9, headers={"X-Linked-Etag": '"' + "0" * 64 + '"'})],
    ),
    "no ETag": ("hub_bad_file", [dict(kind="headers", method="HEAD", times=9, headers={"X-Linked-Etag": ""})]),
    "no commit": ("hub_bad_file", [dict(kind="headers", method="HEAD", times=9, headers={"X-Repo-Commit": ""})]),
    "size too small": ("hub_bad_file", [dict(kind="headers", method="HEAD", times=9, headers={"X-Linked-Size": "10"})]),
    "size too big": (
        "hub_bad_file",
        [dict(kind="headers", method="HEAD", times=9, headers={"X-Linked-Size": "999999"})],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_errors_of_a_hub_are_handled_or_reported(
    name: str, hub: FakeHub, slept: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is recovered from or reported with its code in limited time, and the next call succeeds."""
    code, faults = FAULTS[name]
    for repeat in range(REPEATS):
        cache = tmp_path / str(repeat)
        hub.faults.clear()
        slept.clear()
        for fault in faults:
            hub.fault(**{"name": "model.safetensors", **fault})
        with monkeypatch.context() as patch:
            if name.startswith("stall"):
                patch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.15)
                patch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.15)
            if code == OK:
                check_fetched(fetch_from(hub, cache))
            else:
                with pytest.raises(HubError) as caught:
                    fetch_from(hub, cache)
                assert caught.value.code == code
                assert f"{REPO}@" in caught.value.message
                assert hub.url in caught.value.message
                assert not list(cache.glob("models--*/snapshots/*/model.safetensors"))
        assert not list(cache.rglob("*.incomplete"))
        assert sum(slept) <= 60
        check_whole(cache)
        hub.faults.clear()
        check_fetched(fetch_from(hub, cache))


def test_a_corrupted_config_is_refused(hub: FakeHub, slept: list[float], tmp_path: Path) -> None:
    """A flipped bit in mean or std would change the outputs without any error."""
    hub.fault("corrupt", "config.json")
    with pytest.raises(HubError) as caught:
        fetch_from(hub, tmp_path)
    assert caught.value.code == "hub_bad_file"
    check_fetched(fetch_from(hub, tmp_path))


def test_a_corrupted_file_that_cannot_be_removed_is_named(
    hub: FakeHub, slept: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "config.json":
            raise PermissionError(13, "Permission denied", str(path))
        remove(path, missing_ok)

    hub.fault("corrupt", "config.json")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        with pytest.raises(HubError) as caught:
            fetch_from(hub, tmp_path)
    assert caught.value.code == "hub_bad_file"
    assert "which could not be removed (Permission denied), and try again" in str(caught.value.hint)
    assert str(tmp_path) in str(caught.value.hint)


def test_an_etag_may_be_a_plain_sha1(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert fetch._has_etag(path, "040f06fd774092478d450774f5ba30c5da78acc8")  # sha1 of the content
    assert fetch._has_etag(path, blob_id(b"content"))
    assert fetch._has_etag(path, "5f3e-abc")  # not a hash of the content
    assert not fetch._has_etag(path, blob_id(b"other"))


@pytest.mark.parametrize("etag", ["../../evil", "..\\evil", "/etc/evil", "C:evil", "", ".", "a/b", "x" * 200])
def test_an_etag_cannot_name_a_file_outside(hub: FakeHub, slept: list[float], tmp_path: Path, etag: str) -> None:
    hub.fault("headers", "model.safetensors", method="HEAD", times=9, headers={"X-Linked-Etag": f'"{etag}"'})
    with pytest.raises(HubError) as caught:
        fetch_from(hub, tmp_path / "a" / "b" / "cache")
    assert caught.value.code == "hub_bad_file"
    assert not list(tmp_path.rglob("*evil*"))


def test_a_redirect_away_from_https_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer = HfFileMetadata(
        commit_hash="0" * 40, etag="1" * 64, location="http://127.0.0.1/file", size=1, xet_file_data=None
    )
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *args, **kwargs: answer)
    with pytest.raises(HubError, match="unencrypted") as caught:
        fetch_model(REPO, cache_dir=tmp_path, endpoint="https://hub.invalid")
    assert caught.value.code == "hub_bad_file"


def test_an_endpoint_without_a_server_is_reported(hub: FakeHub, slept: list[float], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(HubError) as caught:
        fetch_model(REPO, cache_dir=tmp_path, endpoint=url)
    assert caught.value.code == "hub_unavailable"
    assert slept == [1, 2]
    check_fetched(fetch_from(hub, tmp_path))
    check_fetched(fetch_model(REPO, cache_dir=tmp_path, endpoint=url))
    assert slept == [1, 2], "with a cached copy at hand nothing is waited for"


# --- access ---


def test_a_missing_repository_or_revision(hub: FakeHub, slept: list[float], tmp_path: Path) -> None:
    for how in (
        dict(repo="org/none"),
        dict(repo="org/none", token="hf_x"),
        dict(revision="v9"),
        dict(revision="0" * 40),
    ):
        with pytest.raises(HubError) as caught:
            fetch_from(hub, tmp_path, **how)
        assert caught.value.code == "hub_not_found"
        assert how.get("revision", "org/none") in caught.value.message


def test_gated_and_private_repositories(hub: FakeHub, slept: list[float], tmp_path: Path) -> None:
    hub.repos[REPO].token = SECRET
    with pytest.raises(HubError) as caught:
        fetch_from(hub, tmp_path)
    assert caught.value.code == "hub_not_found"  # the Hub does not reveal that a private repository exists
    check_fetched(fetch_from(hub, tmp_path, token=SECRET))
    hub.repos[REPO].gated = True
    with pytest.raises(HubError) as caught:
        fetch_from(hub, tmp_path / "other", token=SECRET)
    assert caught.value.code == "hub_denied"


def test_the_token_is_only_sent_to_the_hub_and_not_in_messages(
    hub: FakeHub, slept: list[float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.repos[REPO].token = SECRET
    with caplog.at_level(logging.DEBUG):
        check_fetched(fetch_from(hub, tmp_path, token=SECRET))
        for status in (400, 401, 403, 404, 429, 500):
            hub.faults.clear()
            hub.fault("status", method="HEAD", status=status, times=99)
            with pytest.raises(HubError) as caught:
                fetch_from(hub, tmp_path / "other", token=SECRET)
            assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in repr(fetch.check_location(REPO, None, tmp_path, SECRET, hub.url))
    for verb, path, headers in hub.requests:
        sent = headers.get("Authorization") or headers.get("authorization")
        assert sent == (None if path.startswith("/cdn/") else f"Bearer {SECRET}"), (verb, path)
    assert SECRET not in caplog.text


@pytest.mark.parametrize("token", [f"{SECRET}\n", f"{SECRET} x", f"{SECRET}\0", "", f"{SECRET}é"])
def test_a_token_that_is_not_allowed_in_a_header_is_refused(token: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        fetch_model(REPO, cache_dir=tmp_path, token=token, endpoint="http://127.0.0.1:9")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_credentials_in_the_endpoint_are_not_shown(slept: list[float], tmp_path: Path) -> None:
    with pytest.raises(HubError) as caught:
        fetch_model(REPO, cache_dir=tmp_path, endpoint="http://user:geheim@127.0.0.1:9/hub")
    assert "geheim" not in str(caught.value)
    assert "http://127.0.0.1:9/hub" in str(caught.value)


# --- names ---

UNSAFE = [
    *("../x", "..", ".", "../../etc/passwd", "/etc/passwd", "/", "//host/x", "a/../b", "a/..", "../", "./a", "a/./b"),
    *("C:\\x", "C:x", "C:/x", "c:", "\\x", "\\\\host\\x", "a\\b", "..\\x", "a\\..\\b", "\\\\?\\C:\\x", "a/\\\\host\\x"),
    *("a\0b", "\0", "a/b\0", "a\nb", "a\rb", "a\tb", " a", "a ", "a b", "\x7f", "a\x1b[0m", "é", "文件夹", "\u202ea"),
    *("%2e%2e/x", "..%2fx", "%2e%2e%5cx", "..%c0%af", "a%00b", "~", "~/x", "$HOME", "${HOME}", "`id`", "a;b", "a|b"),
    *("a..b", "a//b", "-a", "a/-b", ".git", "a/.git", "a?b", "a#b", "a:b", "a*", 'a"b', "a<b", "a/b/", "", "a" * 300),
]


@pytest.mark.parametrize("argument", ["repo", "revision"])
def test_unsafe_names_are_refused_before_any_request(
    argument: str, hub: FakeHub, slept: list[float], tmp_path: Path
) -> None:
    for name in UNSAFE:
        with pytest.raises(UsageError) as caught:
            fetch_from(hub, tmp_path / "cache", **{argument: name})
        assert caught.value.code == "bad_argument", name
    assert not hub.requests
    assert not list(tmp_path.iterdir())


def test_invalid_repository_names_are_refused(tmp_path: Path) -> None:
    for name in (
        "a/b/c",
        "datasets/a/b",
        "org/a--b",
        "org/",
        "/name",
        "org/name@main",
        "hf-hub:org/name",
        "https://x/y",
    ):
        with pytest.raises(UsageError):
            fetch_model(name, cache_dir=tmp_path)


@pytest.mark.parametrize(
    "endpoint",
    [
        "ftp://host",
        "file:///etc",
        "host",
        "http://",
        "http://ho st",
        "http://host:99999",
        "http://host?x=1",
        "http://[x",
    ],
)
def test_an_endpoint_that_is_not_a_web_address_is_refused(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        fetch_model(REPO, cache_dir=tmp_path, endpoint=endpoint)
    assert caught.value.code == "bad_argument"


# --- the cache ---


def test_a_link_out_of_the_cache_is_not_followed(hub: FakeHub, slept: list[float], tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"not the hub's")
    link = fetch_from(hub, tmp_path / "cache").weights_path
    link.unlink()
    link.symlink_to(outside)
    with pytest.raises(HubError, match="links to a file outside the cache") as caught:
        fetch_from(hub, tmp_path / "cache")
    assert caught.value.code == "hub_bad_file"
    assert outside.read_bytes() == b"not the hub's"


def test_a_read_only_cache_is_reported(hub: FakeHub, slept: list[float], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HubError) as caught:
        fetch_from(hub, tmp_path / "file" / "cache")
    assert caught.value.code == "cache_failed"
    assert str(tmp_path / "file") in caught.value.message


def test_a_file_removed_by_another_process_is_reported(hub: FakeHub, tmp_path: Path) -> None:
    source = fetch.check_location(REPO, None, tmp_path, None, hub.url)
    with pytest.raises(HubError) as caught:
        fetch._verify(source, tmp_path / "gone", "0" * 64)
    assert caught.value.code == "cache_failed"


def test_a_cache_without_symbolic_links_works(
    hub: FakeHub, slept: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without symbolic links the cache consists of plain files, which are also verified after the download."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    hub.fault("corrupt", "model.safetensors")
    with pytest.raises(HubError):
        fetch_from(hub, tmp_path)
    files = fetch_from(hub, tmp_path)
    assert not files.weights_path.is_symlink()
    assert files.weights_path.read_bytes() == WEIGHTS
    assert files.sha256 is None


# --- in separate processes ---

CHILD = """
import json, os, sys
events = []
cache = os.path.realpath(os.environ["HF_HOME"])
def audit(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        events.append([event, str(args[-1])])
    elif event == "open" and isinstance(args[0], str) and isinstance(args[2], int) and args[2] & 3:
        if os.path.realpath(args[0]).startswith(cache):
            events.append([event, args[0]])
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.symlink", "os.chmod", "os.rmdir"):
        if event == "os.mkdir" and os.path.isdir(args[0]):
            return  # changes nothing
        if os.path.realpath(str(args[0])).startswith(cache):
            events.append([event, str(args[0])])
sys.addaudithook(audit)
from tessella.errors import TessellaError
from tessella.weights.fetch import fetch_model
try:
    files = fetch_model(*sys.argv[1:])
    result = dict(path=str(files.weights_path), sha256=files.sha256, revision=files.revision)
except TessellaError as error:
    result = dict(code=error.code, message=str(error))
print(json.dumps(dict(result, events=events, torch="torch" in sys.modules)))
"""

RACE = """
import os, sys, hashlib
import huggingface_hub.file_download, huggingface_hub._snapshot_download
from tessella.weights.fetch import fetch_model
start, go = os.pipe()
children = []
for _ in range(16):
    if not (pid := os.fork()):
        os.close(go)
        os.read(start, 1)  # returns for all when the parent closes its end
        files = fetch_model(sys.argv[1])
        with open(files.weights_path, "rb") as file:
            os._exit(hashlib.file_digest(file, "sha256").hexdigest() != files.sha256)
    children.append(pid)
os.close(start), os.close(go)
sys.exit(sum(os.waitpid(pid, 0)[1] != 0 for pid in children))
"""


CREATE = """
import sys, torch
from huggingface_hub import constants
from tessella.errors import TessellaError
from tessella.weights import create_model
connections = []
sys.addaudithook(lambda event, args: connections.append(event) if event == "socket.connect" else None)
images = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
def logits():
    with torch.inference_mode():
        return create_model(sys.argv[1], pretrained=True).eval()(images)
online = logits()
assert connections
torch.save(online, sys.argv[2])
constants.HF_HUB_OFFLINE = True
connections.clear()
assert torch.equal(logits(), online)
assert not connections
try:
    create_model("hf-hub:org/other", pretrained=True)
except TessellaError as error:
    assert error.code == "offline", error.code
assert not connections
"""


def environment(home: Path, hub: FakeHub, **more: str) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    return {**inherited, **settings, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **more}


def run_child(home: Path, hub: FakeHub, *arguments: str, **more: str) -> dict[str, Any]:
    command = [sys.executable, "-c", CHILD, *arguments]
    done = subprocess.run(command, env=environment(home, hub, **more), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_environment_variables_and_offline_mode(hub: FakeHub, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_HOME are used; in offline mode there is no connection, with a warm or a cold cache."""
    online = run_child(tmp_path / "warm", hub, REPO)
    assert online["sha256"] == sha256(WEIGHTS)
    assert Path(online["path"]).is_relative_to(tmp_path / "warm")
    assert any(event == "socket.connect" for event, _ in online["events"])
    assert not online["torch"]

    again = run_child(tmp_path / "warm", hub, REPO)
    assert [event for event in again["events"] if not event[0].startswith("socket")] == [], "a warm cache was written"

    asked = len(hub.requests)
    warm = run_child(tmp_path / "warm", hub, REPO, HF_HUB_OFFLINE="1")
    assert (warm["path"], warm["sha256"]) == (online["path"], online["sha256"])
    assert warm["events"] == [], "offline neither connects nor writes, so a read-only cache is enough"

    cold = run_child(tmp_path / "cold", hub, REPO, HF_HUB_OFFLINE="1")
    assert cold["code"] == "offline"
    assert cold["events"] == []
    for part in ("HF_HUB_OFFLINE", REPO, f"hf download {REPO} --revision main"):
        assert part in cold["message"]
    assert len(hub.requests) == asked


@pytest.mark.skipif(not hasattr(os, "fork"), reason="sixteen processes are started by forking")
def test_sixteen_processes_race_for_one_file(hub: FakeHub, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", RACE, REPO]
    done = subprocess.run(command, env=environment(tmp_path, hub), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert check_whole(tmp_path / "hub") == 2
    assert not list(tmp_path.rglob("*.incomplete"))
    assert hub.count("GET", "model.safetensors") == 1


@pytest.mark.slow
@torch.no_grad()
def test_create_model_from_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    """A model from `save_pretrained`, loaded from a repository's tag, has the same logits online and offline."""
    model = build("convmixer_768_32", dim=8, depth=2, kernel_size=3, patch_size=4, num_classes=5).eval()
    folder = save_pretrained(model, tmp_path / "saved")
    hub.add("org/mixer", {"config.json": b"{}"})
    hub.add("org/mixer", {path.name: path.read_bytes() for path in folder.iterdir()}, revision="v1")
    command = [sys.executable, "-W", "error", "-c", CREATE, "hf-hub:org/mixer@v1", str(tmp_path / "logits")]
    done = subprocess.run(command, env=environment(tmp_path, hub), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    images = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    assert torch.equal(torch.load(tmp_path / "logits", weights_only=True), model(images))


def test_every_failure_is_a_hub_error(hub: FakeHub, slept: list[float], tmp_path: Path) -> None:
    """Unknown exceptions of the client also become errors with a code, with their type in the message."""
    with pytest.raises(TessellaError, match="KeyError") as caught:
        fetch.call_hub(
            fetch.check_location(REPO, None, tmp_path, None, hub.url), lambda: os.environ["TESSELLA_MISSING"]
        )
    assert caught.value.code == "hub_unavailable"
