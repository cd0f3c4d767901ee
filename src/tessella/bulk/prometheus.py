"""Progress of a bulk run for Prometheus, as a file that the textfile collector of its node exporter reads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OutputError
from ..extras import require
from ..storage import write_atomic
from .events import RunEvent, RunProgress

if TYPE_CHECKING:
    from prometheus_client import Gauge

WRITE_SECONDS = 5.0  # between two writes


class PrometheusFile:
    """Writes the progress of a bulk run to a file, for `on_event` of `tessella.bulk.run`.

    The file is replaced atomically, at most every five seconds and at the end of the `with` block.
    """

    def __init__(self, path: str | Path):
        """Write a first file, so that a path that cannot be written is reported at once.

        Raises OutputError `output_failed`, UsageError `missing_dependency`.
        """
        prometheus = require("prometheus_client", "--prometheus")
        self._path, self._written = Path(path), 0.0
        self._registry = prometheus.CollectorRegistry()

        def gauge(name: str, description: str, labels: tuple[str, ...] = ()) -> Gauge:
            return prometheus.Gauge(f"tessella_run_{name}", description, labels, registry=self._registry)

        self._rows = gauge("rows", "Number of inputs of the run.")
        self._rows_done = gauge("rows_done", "Number of finished rows, including those of earlier calls.")
        self._speed = gauge("images_per_second", "Images per second of this call.")
        self._fraction = gauge("model_share", "Speed as a fraction of that of the model alone; 0 if not measured.")
        self._errors = gauge("errors", "Number of rows with an error code.", ("code",))
        self.write()

    def __enter__(self) -> PrometheusFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.write()

    def __call__(self, event: RunEvent) -> None:
        """Take an event of a run."""
        if not isinstance(event, RunProgress):
            return
        self._rows.set(event.rows_total)
        self._rows_done.set(event.rows_done)
        self._speed.set(event.images_per_second or 0.0)
        self._fraction.set(event.speed_fraction or 0.0)
        for code, count in event.errors.items():
            self._errors.labels(code).set(count)
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the file now. Raises OutputError `output_failed`."""
        from prometheus_client import generate_latest

        self._written = time.monotonic()
        try:
            write_atomic(self._path, generate_latest(self._registry))
        except OSError as error:
            reason = error.strerror or error
            raise OutputError("output_failed", f"{str(self._path)!r} could not be written: {reason}") from None
