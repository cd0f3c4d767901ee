"""Start a server, call it from Python and with plain HTTP, and stop it.

    python examples/serve_and_call.py examples/cat.jpg examples/coffee.jpg

In production, a service manager starts the server (docs/guide/serving.md), and only the calls below are yours. Needs
the extra `serve`.
"""

import json
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import tessella


@contextmanager
def running_server():
    """Start `tessella serve` on a free port, yield its address, and stop it at the end."""
    command = [sys.executable, "-m", "tessella", "serve", "--port", "0", "--drain-delay", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        line = server.stdout.readline()  # "serving MODEL, MODEL at http://127.0.0.1:PORT"; empty if it failed
        if not line:
            sys.exit("the server did not start: its message is above")
        try:
            yield line.split()[-1]
        finally:
            server.terminate()  # it finishes the requests that it has, and exits with status 0
    print(f"the server has stopped, exit status {server.returncode}")


def wait_until_ready(client, seconds=60):
    """Ask the server until it is ready."""
    deadline = time.monotonic() + seconds
    while not client.ready():
        if time.monotonic() > deadline:
            sys.exit(f"the server was not ready after {seconds} seconds")
        time.sleep(0.1)


def main():
    """Classify and embed the images that are given."""
    paths = sys.argv[1:]
    with running_server() as url, tessella.Client(url) as client:
        wait_until_ready(client)
        print(f"the server is ready at {url}")
        for path, predictions in zip(paths, client.classify(paths, top=1), strict=True):
            print(f"Client: {path} is {predictions[0].label}, {100 * predictions[0].probability:.1f} %")
        print(f"Client: embeddings {client.embed(paths).shape}")

        # The same in any language: the bytes of one image are the body.
        for path in paths:
            request = urllib.request.Request(f"{url}/v1/classify?top=1", Path(path).read_bytes())
            request.add_header("Content-Type", "image/jpeg")
            with urllib.request.urlopen(request) as response:
                (result,) = json.load(response)["results"]
            print(f"HTTP: {path} is {result['top'][0]['label']}, unknown: {result['unknown']}")


if __name__ == "__main__":
    main()
