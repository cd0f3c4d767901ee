"""Metrics: labels from closed lists, and values that a parser of the format can read."""

from __future__ import annotations

import threading

from prometheus_client.parser import text_string_to_metric_families

from tessella.errors import CODES, ImageError
from tessella.results import Output
from tessella.serve.metrics import CONTENT_TYPE, OTHER, ServeMetrics

from .engines import numbers


def values(metrics: ServeMetrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return the samples by name and values of labels, in the alphabetical order of the labels."""
    text = metrics.render().decode()
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_client_cannot_create_labels() -> None:
    metrics = ServeMetrics()
    for i in range(100):
        metrics.request("/v1/classify", f"METHOD{i}", 405)
        metrics.error(f"code{i}")
    found = values(metrics)
    assert found["tessella_requests_total", (OTHER, "/v1/classify", "405")] == 100
    assert found["tessella_errors_total", (OTHER,)] == 100
    assert len([name for name, _ in found if name == "tessella_errors_total"]) == 1


def test_every_code_is_a_label() -> None:
    metrics = ServeMetrics()
    for code in CODES:
        metrics.error(code)
    found = values(metrics)
    assert all(found["tessella_errors_total", (code,)] == 1 for code in CODES)


def test_an_answer_counts_its_images_and_times() -> None:
    metrics = ServeMetrics()
    outcomes = [Output(numbers(1), numbers(1)), ImageError("corrupt_image", "damaged"), Output(numbers(2), numbers(2))]
    metrics.answer(dict(decode=2.0, queue=0.5, model=30.0, total=40.0), outcomes)
    found = values(metrics)
    assert found["tessella_images_total", ()] == 2
    assert found["tessella_errors_total", ("corrupt_image",)] == 1
    assert found["tessella_latency_seconds_sum", ("model",)] == 0.03
    assert found["tessella_latency_seconds_count", ("total",)] == 1


def test_gauges_are_read_when_the_metrics_are() -> None:
    metrics, images, ready = ServeMetrics(), [3], [True]
    metrics.watch_queue(lambda: images[0], lambda: 100.0, lambda: ready[0])
    assert values(metrics)["tessella_queue_images", ()] == 3
    images[0], ready[0] = 5, False
    found = values(metrics)
    assert (found["tessella_queue_images", ()], found["tessella_ready", ()]) == (5, 0)
    assert found["tessella_queue_bytes", ()] == 100


def test_models_have_their_fingerprint() -> None:
    metrics = ServeMetrics()
    metrics.model("mixer", "0123456789abcdef", loaded=True)
    assert values(metrics)["tessella_model_loaded", ("0123456789abcdef", "mixer")] == 1
    metrics.model("mixer", "0123456789abcdef", loaded=False)
    assert values(metrics)["tessella_model_loaded", ("0123456789abcdef", "mixer")] == 0


def test_two_services_do_not_share_counters() -> None:
    one, other = ServeMetrics(), ServeMetrics()
    one.worker_restarted()
    one.batch(4)
    assert values(one)["tessella_worker_restarts_total", ()] == 1
    assert values(other)["tessella_worker_restarts_total", ()] == 0
    assert CONTENT_TYPE.startswith("text/plain")


def test_counts_of_many_threads_add_up() -> None:
    metrics = ServeMetrics()

    def work() -> None:
        for _ in range(1000):
            metrics.batch(8)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values(metrics)["tessella_batch_images_count", ()] == 4000
