"""Metrics of a bulk run for Prometheus."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessella.bulk import PrometheusFile, RunProgress, RunRemark
from tessella.errors import OutputError


def progress(rows_done: int) -> RunProgress:
    return RunProgress(
        rows_done=rows_done, rows_total=9, seconds=2.0, errors={"empty": 1}, images_per_second=2.0, speed_fraction=None
    )


def test_metrics_are_written_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "run.prom"
    with PrometheusFile(path) as metrics:
        assert "tessella_run_rows 0.0" in path.read_text().splitlines()
        metrics(RunRemark(text="listing the inputs"))
        metrics(progress(4))
        metrics(progress(5))
    assert [line for line in path.read_text().splitlines() if not line.startswith("#")] == [
        "tessella_run_rows 9.0",
        "tessella_run_rows_done 5.0",
        "tessella_run_images_per_second 2.0",
        "tessella_run_model_share 0.0",
        'tessella_run_errors{code="empty"} 1.0',
    ]


def test_metrics_are_written_like_any_result(tmp_path: Path) -> None:
    """A symbolic link is kept, a device is written to, and a folder is refused."""
    target = tmp_path / "target.prom"
    target.write_text("old")
    (tmp_path / "link.prom").symlink_to(target)
    metrics = PrometheusFile(tmp_path / "link.prom")
    metrics(progress(4))
    metrics.write()
    assert (tmp_path / "link.prom").is_symlink()
    assert 'tessella_run_errors{code="empty"} 1.0' in target.read_text().splitlines()
    PrometheusFile(Path("/dev/null"))
    for path in (Path("/dev/full"), tmp_path, tmp_path / "absent" / "run.prom"):
        with pytest.raises(OutputError, match="could not be written") as caught:
            PrometheusFile(path)
        assert caught.value.code == "output_failed"
    assert Path("/dev/full").is_char_device()
