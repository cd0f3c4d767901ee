"""Measure `tessella serve`: `scripts/bench serve [--models NAME ...] [--peers] [--rounds N] [--seconds S]`.

Images are JPEG files of 400 x 300 pixels, crops of the photographs in the package. Candidates take turns: the engine
alone on batches in memory, `tessella serve` with 16 clients that send one image per request, the same server with the
same images in Triton's protocol (as `tritonclient` sends them: BYTES with binary tensors), the server without the
calibration of the model if it has one, and the same model behind LitServe in several settings (--peers). The processes
of all other servers are stopped meanwhile. Then `tessella serve` gets requests at a constant rate, 0.7 of its capacity,
for p50 and p99. The clients run in this process, on the same cores. Architectures without a tag have random weights,
which does not change their speed. Rows are written to benchmarks/results as a CSV file.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import itertools
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import numpy as np
import simplejpeg
from table import RESULTS, write_table

import tessella
from tessella.data.samples import sample_images
from tessella.data.spec import InputSpec
from tessella.serve.load import LoadResult, Request, closed_loop, make_request, open_loop, percentile
from tessella.serve.loops import run
from tessella.serve.process import ServerProcess

MODELS = ("convmixer_384_8_ks5_p8.photographs", "mixer_b16_224", "convmixer_768_32")
OURS = "tessella serve"
CLIENTS = 16
IMAGES = 64
LITSERVE = ((1, 2), (8, 1), (16, 1))  # batch size, workers; the best is reported
HERE = Path(__file__).resolve().parent


class Candidate(NamedTuple):
    """A server, and the protocol in which it gets requests."""

    server: ServerProcess
    protocol: Literal["native", "triton", "litserve"]


def jpegs() -> list[bytes]:
    """Return different JPEG files."""
    pixels = sample_images(InputSpec(height=300, width=400), IMAGES)
    return [simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=90) for image in pixels]


def engine_rate(predictor: tessella.Predictor, seconds: float) -> float:
    """Return images per second of the engine on batches in memory."""
    size = predictor.plan.batch_size
    batch = sample_images(predictor.spec, size)
    end, done, start = time.perf_counter() + seconds, 0, time.perf_counter()
    batches = itertools.takewhile(lambda _: time.perf_counter() < end, itertools.repeat(batch))
    for logits, _ in predictor.engine.imap(batches):
        done += len(logits)
    return done / (time.perf_counter() - start)


def load(server: ServerProcess, make: Callable[[int], Request], seconds: float) -> LoadResult:
    """Send requests from concurrent clients for some seconds."""
    end = time.perf_counter() + seconds
    requests = itertools.takewhile(lambda _: time.perf_counter() < end, map(make, itertools.count()))
    return run(closed_loop(server.address, requests, CLIENTS))


def requests_of(candidate: Candidate, images: list[bytes]) -> Callable[[int], Request]:
    """Return a function that makes the i-th request."""
    server = candidate.server
    if candidate.protocol == "triton":
        path = f"/v2/models/{quote(served_name(server), safe='')}/infer"
        messages = [triton_message(image) for image in images]
        return lambda i: make_request(
            i,
            server.address,
            path,
            messages[i % len(images)][1],
            content_type="application/octet-stream",
            headers=("Accept: */*", f"Inference-Header-Content-Length: {messages[i % len(images)][0]}"),
        )
    if candidate.protocol == "native":
        return lambda i: make_request(
            i,
            server.address,
            "/v1/predict",
            images[i % len(images)],
            content_type="image/jpeg",
            headers=("Accept: */*",),
        )
    bodies = [json.dumps(dict(data=base64.b64encode(image).decode())).encode() for image in images]
    return lambda i: make_request(
        i, server.address, "/predict", bodies[i % len(bodies)], content_type="application/json"
    )


def triton_message(image: bytes) -> tuple[int, bytes]:
    """Return the length of the JSON part and the body of a request for logits, with binary tensors."""
    data = len(image).to_bytes(4, "little") + image
    asked = {
        "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}],
        "parameters": {"binary_data_output": True},
    }
    header = json.dumps(asked).encode()
    return len(header), header + data


def served_name(server: ServerProcess) -> str:
    """Return the name of the model of a server."""
    with urllib.request.urlopen(f"http://{server.address.host}:{server.address.port}/v1/models", timeout=60) as answer:
        return str(json.load(answer)["data"][0]["id"])


def free_port() -> int:
    """Return a port that is free now."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def candidates(model: str, calibrated: bool, peers: bool) -> Iterator[dict[str, Candidate]]:
    """Start all servers of a model; yields the candidates by name. calibrated: the model has a calibration."""
    ours = [sys.executable, "-m", "tessella", "serve", "-m", model, "--port", "0"]
    commands = {OURS: ours}
    if calibrated:
        commands[f"{OURS} --no-calibration"] = [*ours, "--no-calibration"]
    if peers:
        for batch, workers in LITSERVE:
            script = [
                sys.executable,
                str(HERE / "litserve_server.py"),
                model,
                str(free_port()),
                str(batch),
                str(workers),
            ]
            commands[f"LitServe, batch {batch}, {workers} workers"] = script
    with contextlib.ExitStack() as stack:
        found: dict[str, Candidate] = {}
        for name, command in commands.items():
            server = stack.enter_context(ServerProcess(command))
            if not name.startswith(OURS):
                found[name] = Candidate(server, "litserve")
                continue
            server.wait_until_ready()
            found[name] = Candidate(server, "native")
            if command is ours:
                found[f"{name}, Triton's protocol"] = Candidate(server, "triton")
        yield found


@contextlib.contextmanager
def loadable(model: str) -> Iterator[str]:
    """Yield a name that servers can load: the name of a checkpoint, or a folder with random weights."""
    if "." in model:
        yield model
        return
    with tempfile.TemporaryDirectory() as folder:
        tessella.save_pretrained(tessella.create_model(model), folder)
        yield f"local-dir:{folder}"


def measure(name: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one row per candidate: median, lowest and highest rate, and latencies."""
    with loadable(name) as model:
        rates, latencies, steady, rate = run_rounds(model, options)
    for server, values in rates.items():
        yield row(name, server, values, sorted(latencies.get(server, [])), rates["engine alone"])
    yield row(name, f"{OURS} at {rate:.1f}/s", [steady.count(200) / steady.duration], steady.latencies(200), [])


def run_rounds(
    model: str, options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, list[float]], LoadResult, float]:
    """Return rates in every round and latencies by candidate, and the result of steady load with its rate."""
    images = jpegs()
    predictor = tessella.load(model)
    rates: dict[str, list[float]] = {}
    latencies: dict[str, list[float]] = {}
    with candidates(model, predictor.calibration is not None, options.peers) as servers:
        makers = {name: requests_of(candidate, images) for name, candidate in servers.items()}
        for name, candidate in servers.items():
            wait_for_answers(candidate.server, makers[name])
        for _ in range(options.rounds):
            with running(servers, None):
                rates.setdefault("engine alone", []).append(engine_rate(predictor, options.seconds))
            for name, candidate in servers.items():
                with running(servers, candidate.server):
                    result = load(candidate.server, makers[name], options.seconds)
                rates.setdefault(name, []).append(result.count(200) / result.duration)
                latencies.setdefault(name, []).extend(result.latencies(200))
        rate = 0.7 * statistics.median(rates[OURS])
        requests = map(makers[OURS], itertools.count())
        with running(servers, servers[OURS].server):
            steady = run(open_loop(servers[OURS].server.address, requests, rate, options.rounds * options.seconds))
    return rates, latencies, steady, rate


@contextlib.contextmanager
def running(servers: dict[str, Candidate], kept: ServerProcess | None) -> Iterator[None]:
    """Stop the processes of all servers but one: those of LitServe poll their queues, even without requests."""
    others = {candidate.server.pid for candidate in servers.values() if candidate.server is not kept}
    for pid in others:
        os.killpg(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in others:
            os.killpg(pid, signal.SIGCONT)


def wait_for_answers(server: ServerProcess, make: Callable[[int], Request]) -> None:
    """Wait until a server answers, then warm it up."""
    end = time.monotonic() + 180
    while time.monotonic() < end:
        if run(closed_loop(server.address, [make(0)], 1)).count(200):
            run(closed_loop(server.address, map(make, range(4 * CLIENTS)), CLIENTS))
            return
        time.sleep(0.5)
    raise SystemExit(f"the server at {server.address} does not answer")


def row(model: str, name: str, rates: list[float], latencies: list[float], engine: list[float]) -> dict[str, Any]:
    """Return a row of the table; the ratio is the median over rounds of rates measured one after the other."""
    ratios = [rate / alone for rate, alone in zip(rates, engine, strict=False)]
    return dict(
        model=model,
        server=name,
        images_s=round(statistics.median(rates), 1),
        slowest=round(min(rates), 1),
        fastest=round(max(rates), 1),
        of_engine=round(statistics.median(ratios), 3) if ratios else "",
        p50_ms=round(1000 * percentile(latencies, 0.5), 1) if latencies else "",
        p99_ms=round(1000 * percentile(latencies, 0.99), 1) if latencies else "",
        rounds=len(rates),
    )


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--peers", action="store_true", help="compare with LitServe (installed by scripts/bench)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--note", default="", help="conditions of the measurement, kept with the rows")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the CSV file")
    options = parser.parse_args()
    rows = [row | dict(note=options.note) for model in options.models for row in measure(model, options)]
    write_table("serve", rows, options.out)


if __name__ == "__main__":
    main()
