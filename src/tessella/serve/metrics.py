"""Metrics of a server for Prometheus: one registry per service, labels from closed lists only."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ..errors import CODES, TessellaError

CONTENT_TYPE = CONTENT_TYPE_LATEST
STAGES = ("queue", "decode", "model", "total")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
EXPLAIN_STAGES = ("queue", "decode", "start", "load", "explain", "total")
EXPLAIN_METHODS = ("exact", "grad-cam", "attention", "integrated-gradients", "occlusion")
EXPLAIN_ENDS = ("idle", "deadline", "lost", "closed")
_EXPLAIN_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
OTHER = "other"  # the label of values outside of a closed list


class ExplainMetrics:
    """Counters of explanations, in the registry of a service. Every method may be called from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._images = Counter(
            "tessella_explanations",
            "Images that were explained, by method, and whether the map was better than random ones.",
            ("method", "faithful"),
            registry=registry,
        )
        self._times = Histogram(
            "tessella_explain_seconds",
            "Seconds per request for explanations by stage: decoding, waiting, starting the process, loading the "
            "model, explaining, and in total.",
            ("stage",),
            buckets=_EXPLAIN_SECONDS,
            registry=registry,
        )
        self._queue = Gauge(
            "tessella_explain_queue_images", "Images that are being explained or wait for it.", registry=registry
        )
        self._running = Gauge(
            "tessella_explain_process", "1 while there is a process that explains.", registry=registry
        )
        self._ends = Counter(
            "tessella_explain_process_ends",
            "Processes that have ended: idle, killed at a deadline, lost, or closed with the server.",
            ("reason",),
            registry=registry,
        )

    def watch(self, images: Callable[[], float], is_running: Callable[[], bool]) -> None:
        """Read the number of images to explain, and whether there is a process, whenever the metrics are read."""
        self._queue.set_function(images)
        self._running.set_function(lambda: float(is_running()))

    def explained(self, method: str, faithful: bool) -> None:
        """Count an image that was explained."""
        label = method if method in EXPLAIN_METHODS else OTHER
        self._images.labels(label, "yes" if faithful else "no").inc()

    def times(self, milliseconds: dict[str, float]) -> None:
        """Observe the times of a request for explanations by stage."""
        for stage in EXPLAIN_STAGES:
            self._times.labels(stage).observe(milliseconds[stage] / 1000)

    def process_ended(self, reason: str) -> None:
        """Count the end of a process that explains."""
        self._ends.labels(reason if reason in EXPLAIN_ENDS else OTHER).inc()


class ServeMetrics:
    """Counters of one service. Every method may be called from any thread.

    Labels come from closed lists (stages, error codes, methods, the server's own routes), so that no client can create
    time series.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._counted: weakref.WeakSet[TessellaError] = weakref.WeakSet()
        self._counting = threading.Lock()
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
        self.explanations = ExplainMetrics(registry)

    def request(self, route: str, method: str, status: int) -> None:
        """Count an answered request. route: the template of a route, such as "/v1/classify", never a path."""
        self._requests.labels(route, method if method in _METHODS else OTHER, str(status)).inc()

    def error(self, code: str) -> None:
        """Count a request or an image that failed."""
        self._errors.labels(code if code in CODES else OTHER).inc()

    def failed(self, error: TessellaError) -> None:
        """Count an error once: where it occurs, or at the latest where a request is answered with it."""
        with self._counting:
            is_new = error not in self._counted
            self._counted.add(error)
        if is_new:
            self.error(error.code)

    def answer(self, milliseconds: dict[str, float], outcomes: Sequence[object]) -> None:
        """Observe an answer: its times by stage, as in `Answer.timing`, and the outcomes of its images."""
        for stage, value in milliseconds.items():
            self._stages[stage].observe(value / 1000)
        errors = [outcome for outcome in outcomes if isinstance(outcome, TessellaError)]
        self._images.inc(len(outcomes) - len(errors))
        for error in errors:
            self.failed(error)

    def batch(self, size: int) -> None:
        """Observe the number of images that a model ran on at once; 0 if all had expired."""
        if size:
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
