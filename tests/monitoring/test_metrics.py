"""Metrics of a run, read by Prometheus' own parser and compared with the report."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from lsst.daf.butler import Butler

pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")

from prometheus_client.parser import text_string_to_metric_families

from spark_butler.errors import OptionsError
from spark_butler.monitoring.metrics import RunMetrics, publish_metrics
from spark_butler.report.folder import find_attempts
from spark_butler.report.progress import Progress
from spark_butler.repository.checks import store_roots
from tests.report.fake_runs import make_record
from tests.support.job_harness import JobRepo

type Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

_PREFIX = "spark_butler_"


def _parse(text: str) -> Samples:
    """Read samples by name and labels; the label of the run is left out."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "run"))
            samples[sample.name.removeprefix(_PREFIX), labels] = sample.value
    return samples


def _scrape(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return _parse(answer.read().decode())


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _read_report(job_repo: JobRepo, run: str) -> bytes:
    with Butler.from_config(job_repo.root, writeable=False) as butler:
        return find_attempts(store_roots(butler), run)[-1].report_file.read()


def test_scrape_sums_outcomes_by_kind(tmp_path: Path) -> None:
    record = make_record(20, n_failed=3, n_retried=2)
    port, file = _free_port(), tmp_path / "run.prom"
    with publish_metrics(port, str(file)) as metrics:
        assert _scrape(port) == {}
        metrics.attach("u/me/first", Progress(slots=8).snapshot)
        metrics.on_ingest(lambda: 2.5)
        for outcome in record.outcomes.values():
            metrics.on_outcome(outcome)
        samples = _scrape(port)
    assert samples["slots", ()] == 8
    assert samples["ingest_lag_seconds", ()] == 2.5
    failed = [each for each in record.outcomes.values() if not each.succeeded]
    assert sum(n for (name, _), n in samples.items() if name == "failures_total") == len(failed) == 3
    lost = (("kind", "lost"), ("task", "isr"))
    assert samples["retries_total", lost] == 2
    seconds = sum(
        attempt.wall_seconds
        for each in record.outcomes.values()
        for attempt in (each, *each.attempts)
        if each.report.taskLabel == "calibrate"
    )
    wall = samples["quantum_seconds_total", (("clock", "wall"), ("task", "calibrate"))]
    assert wall == pytest.approx(seconds)
    assert _parse(file.read_text()) == samples


def test_metrics_of_a_run_agree_with_its_report(
    job_repo: JobRepo, run_job: Callable[..., Result], tmp_path: Path
) -> None:
    file = tmp_path / "run.prom"
    result = run_job(
        *(*job_repo.arguments, "--output-run", "metrics/run", "--backend", "serial", "--format", "json"),
        *("-c", "second:fail_condition=detector IN (2)", "--metrics-file", file, "--metrics-port", "0"),
    )
    report: dict[str, Any] = json.loads(result.stdout)
    samples = _parse(file.read_text())
    for task in report["tasks"]:
        for state in ("done", "failed", "blocked"):
            key = "quanta", (("state", state), ("task", task["label"]))
            assert samples[key] == task[state], key
    content = json.loads(_read_report(job_repo, "metrics/run"))
    for task in content["tasks"]:
        for operation, n_requests in task["requests"].items():
            key = "requests_total", (("operation", operation), ("task", task["label"]))
            assert samples[key] == n_requests
        if task["memory"]:
            assert samples["peak_memory_bytes", (("task", task["label"]),)] == task["memory"]["max"]
    assert samples["failures_total", (("kind", "task"), ("task", "second"))] == 1


def test_unusable_port_and_file_are_refused(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(OptionsError, match=f"--metrics-port {port} can't be used"):
            with publish_metrics(port, None):
                pass
    with pytest.raises(OptionsError, match="folder that does not exist"):
        with publish_metrics(None, str(tmp_path / "no" / "run.prom")):
            pass


def test_metrics_without_a_run_are_empty() -> None:
    assert list(RunMetrics().collect()) == []
