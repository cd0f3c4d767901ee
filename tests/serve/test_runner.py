"""The life of a server: start, refusals to start, signals under load, what is left after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tessella.errors import ServeError, UsageError
from tessella.serve import ServeSettings
from tessella.serve.runner import bind, serve, url_of

from .servers import (
    FORM,
    Reply,
    ServerProcess,
    connect,
    exchange,
    free_port,
    multipart,
    read_reply,
    request_bytes,
    wait_for,
)

QUICK = ("--drain-delay", "0.2")


def start_process(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a server that is expected to end by itself."""
    command = [sys.executable, "-m", "tessella", "serve", *options]
    inherited = {key: value for key, value in os.environ.items() if key != "TESSELLA_TOKEN"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**inherited, **environment})


# --- start ------------------------------------------------------------------------------------------------------------


def test_a_newcomer_can_classify_with_curl(server: ServerProcess, cat: bytes) -> None:
    body = multipart(("cat.jpg", cat))
    reply = exchange(server.port, request_bytes("POST", "/v1/classify", body, Content_Type=FORM))
    assert reply.status == 200
    assert reply.json["results"][0]["top"][0]["label"] == "cat"  # type: ignore[index]


def test_the_line_of_a_server_names_its_models(tmp_path: Path) -> None:
    with ServerProcess(wait=False) as process:
        assert process.process.stdout is not None
        line = process.process.stdout.readline()
        assert line.startswith("serving convmixer_256_8_ks3_p4.cifar10, ")
        port = int(line.rsplit(":", 1)[1])
        assert exchange(port, request_bytes("GET", "/readyz")).status == 200


def test_a_server_answers_while_it_loads() -> None:
    port = free_port()
    with ServerProcess("--port", str(port), wait=False) as process:
        statuses = []
        while True:
            with contextlib.suppress(ConnectionError):
                health = exchange(port, request_bytes("GET", "/healthz")).status
                ready = exchange(port, request_bytes("GET", "/readyz")).status
                statuses.append((health, ready))
                if ready == 200:
                    break
            assert process.process.poll() is None
            time.sleep(0.01)
    assert {health for health, _ in statuses} == {200}
    assert [ready for _, ready in statuses] == [503] * (len(statuses) - 1) + [200]
    assert len(statuses) > 1


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (("--host", "0.0.0.0"), 2, "needs a token"),
        (("--host", "::"), 2, "needs a token"),
        (("--host", "192.0.2.1"), 2, "needs a token"),
        (("--token-file", "absent"), 2, "cannot be read"),
        (("--model", "convmixer_768_33"), 2, "convmixer_768_32"),
        (("--model", "gmixer_12_224"), 2, "no weights"),
        (("--index", "absent"), 2, "absent"),
        (("--port", "70000"), 2, "70000"),
        (("--deadline", "0"), 2, "deadline"),
        (("--engine", "steam"), 2, "steam"),
    ],
)
def test_wrong_options_end_the_command(options: tuple[str, ...], status: int, says: str) -> None:
    done = start_process("--port", "0", *options)
    assert done.returncode == status, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_nothing_is_bound_without_a_token() -> None:
    port = free_port()
    done = start_process("--host", "0.0.0.0", "--port", str(port))
    assert done.returncode == 2
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", port))


@pytest.mark.parametrize("content", ["", "\n", "caf\u00e9", "a\nb", "\x00"])
def test_tokens_that_cannot_be_sent_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    done = start_process("--port", "0", "--token-file", str(path))
    assert done.returncode == 2
    assert "token" in done.stderr


def test_a_token_can_be_in_a_file_or_in_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("from-file\n")
    for options, environment, token in (
        (("--token-file", str(path)), {"TESSELLA_TOKEN": "ignored"}, "from-file"),
        ((), {"TESSELLA_TOKEN": "from-environment"}, "from-environment"),
    ):
        with ServerProcess(*options, environment=environment) as process:
            assert exchange(process.port, request_bytes("GET", "/v1/models")).status == 401
            reply = exchange(process.port, request_bytes("GET", "/v1/models", Authorization=f"Bearer {token}"))
            assert reply.status == 200
            assert token not in Path(f"/proc/{process.process.pid}/cmdline").read_text()


def test_a_port_in_use_is_a_coded_error() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServeError, match=str(port)) as caught:
            bind("127.0.0.1", port)
        assert caught.value.code == "cannot_listen"
        with pytest.raises(ServeError):
            serve(ServeSettings(port=port))
        done = start_process("--port", str(port))
        assert done.returncode == 9
        assert "--port" in done.stderr


@pytest.mark.parametrize("host", ["192.0.2.1", "256.1.1.1", "no-such-host.invalid", "a b", "a..b", "a" * 64, ""])
def test_addresses_of_other_machines_are_a_coded_error(host: str) -> None:
    if host == "":
        with pytest.raises(UsageError):
            ServeSettings(host=host)
        return
    with pytest.raises(ServeError) as caught:
        bind(host, 0)
    assert caught.value.code == "cannot_listen"


def test_urls() -> None:
    with bind("127.0.0.1", 0) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    if socket.has_ipv6:
        with contextlib.suppress(ServeError), bind("::1", 0) as listener:
            assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"


def test_missing_packages_are_named(tmp_path: Path) -> None:
    """Before anything is loaded, and with the command that installs them."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, importlib.util as util\n"
        "real = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name in ('fastapi', 'uvicorn') else real(name, package)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = start_process("--port", "0", PYTHONPATH=path)
    assert done.returncode == 2
    assert "the server needs fastapi and uvicorn, which are not installed" in done.stderr
    assert "pip install" in done.stderr


def test_requests_are_logged_on_request(cat: bytes) -> None:
    with ServerProcess("--log-requests", *QUICK) as process:
        exchange(process.port, request_bytes("GET", "/v1/models", X_Request_ID="first"))
        exchange(process.port, b"GARBAGE\r\n\r\n")
        process.signal()
        assert process.wait() == 0
        rows = [json.loads(line) for line in process.errors if line.startswith("{")]
    assert [(row["request_id"], row["path"], row["status"]) for row in rows] == [("first", "/v1/models", 200)]


def test_malformed_requests_do_not_fill_the_log(server: ServerProcess) -> None:
    for _ in range(50):
        exchange(server.port, b"GARBAGE\r\n\r\n")
    assert not any("Invalid" in line for line in server.errors)


# --- signals ----------------------------------------------------------------------------------------------------------


class Load:
    """Clients that ask without a pause until they are refused, each on connections of its own."""

    def __init__(self, process: ServerProcess, image: bytes, clients: int = 6) -> None:
        self.port = process.port
        self.request = request_bytes("POST", "/v1/embed", multipart(("cat.jpg", image)), Content_Type=FORM)
        self.replies: list[Reply] = []
        self.lost: list[str] = []
        self.threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def _ask(self) -> None:
        while True:
            try:
                connection = connect(self.port)
            except OSError:  # nobody listens any more
                return
            with connection:
                try:
                    connection.sendall(self.request)
                    reply = read_reply(connection)
                except OSError as error:
                    self.lost.append(repr(error))
                    return
                if reply.status == 0:  # closed before the request was accepted
                    self.lost.append("closed")
                    return
                self.replies.append(reply)
                if reply.status not in (200, 429):
                    return

    def wait(self) -> None:
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()


@pytest.mark.parametrize("round_", range(10))
def test_nothing_that_was_accepted_is_lost_when_a_server_stops(cat: bytes, round_: int) -> None:
    number = (signal.SIGTERM, signal.SIGINT)[round_ % 2]
    with ServerProcess("--drain-delay", "1.5") as process:  # long enough to be seen on a busy machine
        load = Load(process, cat)
        wait_for(lambda: len(load.replies) > 5 + 7 * round_)
        process.signal(number)
        asked = time.monotonic()
        wait_for(lambda: exchange(process.port, request_bytes("GET", "/readyz")).status == 503, 5)
        assert time.monotonic() - asked < 2
        before = len(load.replies)
        assert process.wait() == 0
        load.wait()
        memory = process.errors
    statuses = {reply.status for reply in load.replies}
    assert statuses <= {200, 503}
    assert len(load.replies) > before  # requests were still answered during the delay
    for reply in load.replies:
        if reply.status == 200:
            rows = reply.json["results"]  # type: ignore[index]
            assert [row["status"] for row in rows] == ["ok"]
        else:
            assert reply.header("x-tessella-error") == "draining"
            assert reply.header("retry-after")
    # whoever connected at the very end was refused by the operating system or before the request was read
    assert len(load.lost) <= len(load.threads)
    assert not any("Traceback" in line for line in memory)


def test_connections_are_closed_with_their_answer_while_a_server_stops(cat: bytes) -> None:
    """So that a load balancer moves its connections to other servers, and loses no request."""
    with ServerProcess("--drain-delay", "3") as process, connect(process.port) as connection:
        for expected in (None, "close"):
            connection.sendall(request_bytes("GET", "/v1/models"))
            reply = read_reply(connection)
            assert (reply.status, reply.header("connection")) == (200, expected)
            if expected is None:
                process.signal()
                wait_for(lambda: exchange(process.port, request_bytes("GET", "/readyz")).status == 503)
        assert connection.recv(10) == b""


def test_a_request_in_work_is_answered_after_the_delay(cat: bytes) -> None:
    with ServerProcess(
        "--drain-delay", "0", "--drain-timeout", "60", "--max-images", "500", "--deadline", "60"
    ) as process:
        body = multipart(*[("cat.jpg", cat)] * 400)
        with connect(process.port, 60) as connection:
            connection.sendall(
                request_bytes("POST", "/v1/embed", body, Content_Type=FORM, X_Tessella_Deadline_Ms="60000")
            )
            wait_for(
                lambda: b"tessella_queue_images 400" in exchange(process.port, request_bytes("GET", "/metrics")).body
            )
            process.signal()
            reply = read_reply(connection)
        assert reply.status == 200
        assert [row["status"] for row in reply.json["results"]] == ["ok"] * 400  # type: ignore[index]
        assert process.wait() == 0


def test_a_second_signal_stops_at_once(cat: bytes) -> None:
    for first, second in ((signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)):
        with ServerProcess("--drain-delay", "600") as process:
            children = process.children()
            process.signal(first)
            wait_for(lambda: any("stopping" in line for line in process.errors))
            process.signal(second)
            assert process.wait(60) == 130
            wait_until_ended(children)


def test_a_signal_while_models_are_loaded_ends_the_server() -> None:
    port = free_port()
    with ServerProcess("--port", str(port), wait=False) as process:
        wait_for(lambda: can_connect(port))
        process.signal()
        assert process.wait(60) == 0
        assert not any("Traceback" in line for line in process.errors)


def can_connect(port: int) -> bool:
    with contextlib.suppress(OSError), connect(port):
        return True
    return False


def wait_until_ended(pids: list[int]) -> None:
    wait_for(lambda: not alive(pids))


def alive(pids: list[int]) -> list[int]:
    """Return the processes that still run; ended ones may wait for their parent."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z":
                found.append(pid)
    return found


def test_no_process_is_left_after_a_kill(cat: bytes) -> None:
    for _ in range(3):
        with ServerProcess() as process:
            exchange(process.port, request_bytes("POST", "/v1/classify", cat, Content_Type="image/jpeg"))
            children = process.children()
            assert children
            process.signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            wait_until_ended(children)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", process.port))


def test_a_killed_decoding_process_is_replaced(cat: bytes) -> None:
    request = request_bytes("POST", "/v1/classify", cat, Content_Type="image/jpeg")
    with ServerProcess("--processes", "1") as process:
        expected = exchange(process.port, request).json["results"]  # type: ignore[index]
        for _ in range(5):
            for child in process.children():
                with contextlib.suppress(OSError):
                    os.kill(child, signal.SIGKILL)
            wait_for(lambda: exchange(process.port, request).status == 200)
            assert exchange(process.port, request).json["results"] == expected  # type: ignore[index]


def test_a_server_whose_decoding_always_fails_ends_with_an_error(tmp_path: Path) -> None:
    """Processes that die at once, again and again, are not an endless loop."""
    if not sys.platform.startswith("linux"):
        pytest.skip("processes are listed in /proc")
    with ServerProcess("--processes", "1") as process:
        stop = threading.Event()

        def kill() -> None:
            while not stop.is_set():
                for child in process.children():
                    with contextlib.suppress(OSError):
                        os.kill(child, signal.SIGKILL)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        try:
            status = process.wait(120)
        finally:
            stop.set()
            killer.join()
        assert status == 9, process.errors
        assert any("cannot continue" in line for line in process.errors)


def test_the_server_does_not_load_pytorch(server: ServerProcess, cat: bytes) -> None:
    """Where the engine needs none; its libraries would be mapped into the process."""
    for path in ("/v1/classify", "/v1/embed"):
        assert exchange(server.port, request_bytes("POST", path, cat, Content_Type="image/jpeg")).status == 200
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "openvino" in maps
    assert "libtorch" not in maps
