"""`tessella classify --server URL` and `embed --server URL` print what the local commands print."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from tessella.cli.remote import open_remote
from tessella.errors import UsageError
from tessella.weights.catalogue import default_model
from tests import base_install
from tests.client.fake_server import FakeServer, Reply, Request, ordinary, problem
from tests.serve.servers import ServerProcess

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TOKEN = "a-token-for-these-tests"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with the built-in models and a token."""
    path = tmp_path_factory.mktemp("token") / "token.txt"
    path.write_text(f"{TOKEN}\n")
    with ServerProcess("--token-file", str(path)) as process:
        yield process


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all example images, one of them twice with an odd name, and a damaged one."""
    folder = tmp_path_factory.mktemp("photos")
    for path in EXAMPLES.glob("*.jpg"):
        shutil.copy(path, folder)
    (folder / 'a, "b" \\ ü.jpg').write_bytes((EXAMPLES / "cat.jpg").read_bytes())
    return folder


def run(*arguments: str | Path, token: str | None = None) -> subprocess.CompletedProcess[bytes]:
    environment = {key: value for key, value in os.environ.items() if key != "TESSELLA_TOKEN"}
    if token is not None:
        environment["TESSELLA_TOKEN"] = token
    command = [sys.executable, "-m", "tessella", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=environment, check=False)


def compare(server: ServerProcess, *arguments: str | Path) -> bytes:
    """Run a command here and with the server; both print and end alike. Return what they print."""
    here, there = run(*arguments), run(*arguments, "--server", server.url, token=TOKEN)
    assert there.stderr.decode() == here.stderr.decode()
    assert (there.returncode, there.stdout.decode()) == (here.returncode, here.stdout.decode())
    return there.stdout


@pytest.mark.parametrize("command", ["classify", "embed"])
@pytest.mark.parametrize("output", [[], ["--json"], ["--csv"]])
def test_the_output_is_that_of_the_local_command(
    server: ServerProcess, photos: Path, command: str, output: list[str]
) -> None:
    printed = compare(server, command, photos, *output)
    assert printed.count(b"\n") >= 3


def test_more_classes_than_the_model_has(server: ServerProcess) -> None:
    printed = compare(server, "classify", EXAMPLES / "cat.jpg", "--top", "1000", "--csv")
    assert b"index10," in printed
    assert b"index11," not in printed


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "npz", "parquet"])
@pytest.mark.parametrize("command", ["classify", "embed"])
def test_files_are_those_of_the_local_command(
    server: ServerProcess, photos: Path, tmp_path: Path, command: str, suffix: str
) -> None:
    here, there = tmp_path / f"here.{suffix}", tmp_path / f"there.{suffix}"
    assert run(command, photos, "-o", here).returncode == 0
    assert run(command, photos, "-o", there, "--server", server.url, token=TOKEN).returncode == 0
    if suffix == "npz":  # the archive contains the time
        with np.load(here) as one, np.load(there) as other:
            assert set(one) == set(other) >= {"fingerprint", "model", "keys"}
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])
    else:
        assert there.read_bytes() == here.read_bytes()


def test_bad_images_and_statuses(server: ServerProcess, photos: Path, tmp_path: Path) -> None:
    """What cannot be read here has the same message; what the server cannot decode has the text of its code."""
    bad = tmp_path / "bad.jpg"
    bad.write_bytes((EXAMPLES / "cat.jpg").read_bytes()[:2000])
    compare(server, "classify", tmp_path / "nowhere.jpg")
    compare(server, "classify", EXAMPLES / "cat.jpg", tmp_path / "nowhere*.jpg")
    for options in ([], ["--strict"]):
        here = run("classify", bad, EXAMPLES / "cat.jpg", "--json", *options)
        there = run("classify", bad, EXAMPLES / "cat.jpg", "--json", *options, "--server", server.url, token=TOKEN)
        assert here.returncode == there.returncode == (3 if options else 0)
        rows = [[json.loads(line) for line in output.stdout.splitlines()] for output in (here, there)]
        assert rows[0][0].pop("message") != rows[1][0].pop("message")
        assert rows[0] == rows[1]
    assert run("classify", bad, "--server", server.url, token=TOKEN).returncode == 3


def test_a_model_is_one_of_the_server(server: ServerProcess) -> None:
    cat = EXAMPLES / "cat.jpg"
    refused = run("classify", cat, "--server", server.url, "--model", "mixer_b16_224", token=TOKEN)
    assert refused.returncode == 2
    assert b"no model of that name is known" in refused.stderr


def test_the_warning_about_classes_is_that_of_the_local_command(server: ServerProcess) -> None:
    arguments = ("classify", EXAMPLES / "cat.jpg", "--model", default_model("embed"))
    compare(server, *arguments)
    assert b"use its embeddings" in run(*arguments, "--server", server.url, token=TOKEN).stderr


def test_the_token(server: ServerProcess, tmp_path: Path) -> None:
    cat = EXAMPLES / "cat.jpg"
    path = tmp_path / "token.txt"
    path.write_text(f"{TOKEN}\n")
    assert run("classify", cat, "--server", server.url, "--token-file", path).returncode == 0
    for token in (None, "wrong"):
        refused = run("classify", cat, "--server", server.url, token=token)
        assert refused.returncode == 2
        assert b"the token is missing or wrong" in refused.stderr
        assert TOKEN.encode() not in refused.stderr
    missing = run("classify", cat, "--server", server.url, "--token-file", tmp_path / "nowhere.txt")
    assert missing.returncode == 2
    assert b"nowhere.txt" in missing.stderr


@pytest.mark.parametrize(
    "options",
    [
        *(["--device", "cpu"], ["--precision", "auto"], ["--engine", "openvino"], ["--batch-size", "4"]),
        *(["--mode", "latency"], ["--transform", "exact"], ["--policy", "timm"], ["--images", str(EXAMPLES)]),
    ],
    ids=lambda options: options[0],
)
def test_options_that_the_server_has_decided(options: list[str]) -> None:
    refused = run("classify", EXAMPLES / "cat.jpg", "--server", "http://127.0.0.1:9", *options)
    assert refused.returncode == 2
    assert f"{options[0]} cannot be combined with --server".encode() in refused.stderr


@pytest.mark.parametrize("options", [["--no-calibration"], ["--calibration", "file"]], ids=lambda options: options[0])
def test_the_server_decides_about_calibration(options: list[str]) -> None:
    """For any command with these options."""

    @click.command()
    @click.option("--model")
    @click.option("--server")
    @click.option("--token-file")
    @click.option("--calibration")
    @click.option("--no-calibration", is_flag=True)
    def command(**arguments: Any) -> None:
        open_remote(arguments, "classify")

    with pytest.raises(UsageError) as refused:
        command.main([*options, "--server", "http://127.0.0.1:9"], standalone_mode=False)
    assert refused.value.message == f"{options[0]} cannot be combined with --server"
    assert f"remove {options[0]}" in refused.value.hint
    assert "runs with --no-calibration" in refused.value.hint


def test_other_wrong_options() -> None:
    cat = EXAMPLES / "cat.jpg"
    assert run("classify", cat, "--token-file", "token.txt").returncode == 2
    refused = run("classify", cat, "--server", "127.0.0.1:8000")
    assert refused.returncode == 2
    assert b"http://127.0.0.1:8000" in refused.stderr


@pytest.mark.parametrize("command", ["classify", "embed"])
def test_no_extra_is_needed(command: str) -> None:
    with FakeServer() as server:
        printed = base_install.tessella(command, EXAMPLES / "cat.jpg", "--server", server.url)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert server.requests[-1].path == f"/v1/{command}"


def test_a_model_whose_facts_are_not_known_yet() -> None:
    """The server has not loaded it: it is asked for a result before the header of a table is printed."""

    def behave(request: Request) -> Reply:
        assert request.path == "/v1/models" or request.fields["model"] == "other"
        return ordinary(request)

    with FakeServer(behave) as server:
        options = ["--server", server.url, "--model", "other", "--csv"]
        classified, embedded = (
            run("classify", EXAMPLES / "cat.jpg", *options),
            run("embed", EXAMPLES / "cat.jpg", *options),
        )
    assert classified.stdout.splitlines()[0].count(b"label") == 5
    assert embedded.stdout.splitlines()[0] == b"key,status,message,e0,e1,e2,e3"


def test_a_server_that_fails_or_is_not_there() -> None:
    cat = EXAMPLES / "cat.jpg"
    with FakeServer(lambda request: problem("internal_error", 500)) as server:
        failed = run("classify", cat, "--server", server.url)
    assert failed.returncode == 9
    assert b"the server failed" in failed.stderr
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        gone = run("classify", cat, "--server", f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert gone.returncode == 9
    assert b"could not be reached" in gone.stderr
