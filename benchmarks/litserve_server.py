"""A Tessella model behind LitServe, a peer of `scripts/bench serve`: `litserve_server.py MODEL PORT BATCH WORKERS`."""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve
import numpy as np

import tessella
from tessella.pipeline import ImageReader
from tessella.results import l2_normalize, softmax


class ModelAPI(litserve.LitAPI):
    """Decode in the worker, run the engine on a batch, answer with five classes and the embedding."""

    def __init__(self, name: str, **settings: Any):
        super().__init__(**settings)
        self._name = name

    def setup(self, device: str) -> None:
        """Load the model in a worker process."""
        self.predictor = tessella.load(self._name)
        self.reader = ImageReader(self.predictor.spec)

    def decode_request(self, request: dict[str, str]) -> np.ndarray:
        """Return the pixels (H,W,3) of the image in a request."""
        return self.reader.load(base64.b64decode(request["data"]))

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Stack images to (B,H,W,3)."""
        return np.stack(inputs)

    def predict(self, x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Run the model on one image (H,W,3), or on a batch (B,H,W,3)."""
        batch = x[None] if x.ndim == 3 else x
        logits, embeddings = next(iter(self.predictor.engine.imap([batch])))
        rows = list(zip(softmax(logits), l2_normalize(embeddings), strict=True))
        return rows[0] if x.ndim == 3 else rows

    def unbatch(self, output: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return one result per image."""
        return output

    def encode_response(self, output: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
        """Return what the other server answers, too: the five most probable classes and the embedding."""
        probabilities, embedding = output
        best = np.argsort(-probabilities)[:5]
        top = [dict(index=int(i), label=self.predictor.labels[i], probability=float(probabilities[i])) for i in best]
        return dict(top=top, embedding=embedding.tolist())


def main() -> None:
    """Serve until a signal ends the process."""
    name, port, batch, workers = sys.argv[1], *map(int, sys.argv[2:5])
    api = ModelAPI(name, max_batch_size=batch, batch_timeout=0.005 if batch > 1 else 0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, timeout=60)
    print(f"http://127.0.0.1:{port}", flush=True)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error", access_log=False)


if __name__ == "__main__":
    main()
