"""Metrics of a server for Prometheus: one registry per service, labels from closed lists only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ..errors import CODES, TessellaError

CONTENT_TYPE = CONTENT_TYPE_LATEST
STAGES = ("queue", "decode", "model", "total")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
OTHER = "other"  # the label of values outside of a closed list


class ServeMetrics:
    """Counters of one service. Every method may be called from any thread.

    Labels come from closed lists (stages, error codes, methods, the server's own routes), so that no client can create
    time series.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._requests = Counter(
            "tessella_requests", "Answered requests.", ("route", "method", "status"), registry=registry
        )
        self._errors = Counter("tessella_errors", "Failed requests and images, by code.", ("code",), registry=registry)
        self._images = Counter("tessella_images", "Images that were answered with a result.", registry=registry)
        self._latency = Histogram(
            "tessella_latency_seconds",
            "Seconds per request by stage: waiting, decoding, the model, and in total.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = {stage: self._latency.labels(stage) for stage in STAGES}
        self._batches = Histogram(
            "tessella_batch_images", "Images per batch of the model.", buckets=_SIZES, registry=registry
        )
        self._queue_images = Gauge(
            "tessella_queue_images", "Images that were admitted and are not answered yet.", registry=registry
        )
        self._queue_bytes = Gauge(
            "tessella_queue_bytes", "Bytes that these images hold, encoded and decoded.", registry=registry
        )
        self._models = Gauge(
            "tessella_model_loaded", "1 for a model that is in memory.", ("model", "fingerprint"), registry=registry
        )
        self._restarts = Counter(
            "tessella_worker_restarts", "Decoding processes that were replaced.", registry=registry
        )
        self._ready = Gauge("tessella_ready", "1 while the server is ready.", registry=registry)

    def request(self, route: str, method: str, status: int) -> None:
        """Count an answered request. route: the template of a route, such as "/v1/classify", never a path."""
        self._requests.labels(route, method if method in _METHODS else OTHER, str(status)).inc()

    def error(self, code: str) -> None:
        """Count a request or an image that failed."""
        self._errors.labels(code if code in CODES else OTHER).inc()

    def answer(self, milliseconds: dict[str, float], outcomes: Sequence[object]) -> None:
        """Observe an answer: its times by stage, as in `Answer.timing`, and the outcomes of its images."""
        for stage, value in milliseconds.items():
            self._stages[stage].observe(value / 1000)
        errors = [outcome.code for outcome in outcomes if isinstance(outcome, TessellaError)]
        self._images.inc(len(outcomes) - len(errors))
        for code in errors:
            self.error(code)

    def batch(self, size: int) -> None:
        """Observe the number of images of a batch."""
        self._batches.observe(size)

    def watch_queue(self, images: Callable[[], float], size: Callable[[], float], ready: Callable[[], bool]) -> None:
        """Read the number and bytes of admitted images, and readiness, whenever the metrics are read."""
        self._queue_images.set_function(images)
        self._queue_bytes.set_function(size)
        self._ready.set_function(lambda: float(ready()))

    def model(self, name: str, fingerprint: str, *, loaded: bool) -> None:
        """Record that a model was loaded or unloaded."""
        self._models.labels(name, fingerprint).set(float(loaded))

    def worker_restarted(self) -> None:
        """Count a decoding process that was replaced."""
        self._restarts.inc()

    def render(self) -> bytes:
        """Return all metrics as text in the format CONTENT_TYPE."""
        return generate_latest(self.registry)
