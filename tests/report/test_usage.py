"""Core-hours, GB-hours and prices: of outcomes, of plans, and in the report command."""

from __future__ import annotations

import dataclasses
import datetime
import json
import uuid
from pathlib import Path

import networkx
import pytest
from click.testing import CliRunner
from lsst.daf.butler import Butler, DataCoordinate, DimensionUniverse
from lsst.pipe.base import QuantumAttemptStatus
from lsst.pipe.base.quantum_reports import QuantumReport

from spark_butler.cli.main import main
from spark_butler.errors import OptionsError
from spark_butler.model.outcomes import FailureKind, QuantumOutcome
from spark_butler.report.folder import new_attempt
from spark_butler.report.usage import format_usage, measure_usage, predict_usage, price_usage, read_price
from spark_butler.repository.checks import store_roots
from spark_butler.repository.task_history import load_peaks, save_peaks

_GB = 1_000_000_000


def _outcome(seconds: float, memory: int, label: str = "isr") -> QuantumOutcome:
    report = QuantumReport(dataId={}, taskLabel=label, quantumId=uuid.uuid4())
    return QuantumOutcome(
        uuid.uuid4(), QuantumAttemptStatus.SUCCESSFUL, report, wall_seconds=seconds, peak_memory=memory
    )


def test_usage_sums_all_attempts() -> None:
    failed = dataclasses.replace(
        _outcome(900, 4 * _GB), status=QuantumAttemptStatus.ABORTED, kind=FailureKind.MEMORY
    ).as_attempt()
    outcomes = [dataclasses.replace(_outcome(1800, 2 * _GB), attempts=(failed,)), _outcome(900, 8 * _GB)]
    # 3600 s on two cores; 0.5 h x 2 GB + 0.25 h x 4 GB + 0.25 h x 8 GB.
    assert measure_usage(outcomes, 2) == {"core_hours": 2.0, "gb_hours": 4.0}


def test_quanta_that_were_skipped_use_nothing() -> None:
    skipped = dataclasses.replace(_outcome(3600, _GB), skipped_existing=True)
    assert measure_usage([skipped], 1) == {"core_hours": 0.0, "gb_hours": 0.0}


def test_usage_of_a_plan_follows_from_earlier_runs() -> None:
    """One of two quanta ran before; the other is given its time.  Nothing is known of the last task."""
    universe = DimensionUniverse()
    xgraph: networkx.DiGraph[uuid.UUID] = networkx.DiGraph()
    for label, detector in (("isr", 1), ("isr", 2), ("warp", 1), ("new", 1)):
        data_id = DataCoordinate.standardize(instrument="Cam", detector=detector, universe=universe)
        xgraph.add_node(uuid.uuid4(), task_label=label, data_id=data_id)
    times = {("isr", "Cam,1"): 1800.0, ("warp", "Cam,7"): 3600.0}
    tasks = {task["label"]: task for task in predict_usage(xgraph, times, {"isr": 2.0 * _GB}, 1)}
    assert tasks["isr"] == {"label": "isr", "quanta": 2, "core_hours": 1.0, "gb_hours": 2.0}
    assert tasks["warp"] == {"label": "warp", "quanta": 1, "core_hours": 1.0, "gb_hours": None}
    assert tasks["new"]["core_hours"] is None
    assert price_usage(tasks["isr"], (0.5, 0.25)) == 1.0
    assert price_usage(tasks["new"], (0.5, 0.25)) is None
    lines = [line.split() for line in format_usage(list(tasks.values()), (0.5, 0.25)).splitlines()]
    assert lines[0] == ["task", "quanta", "core-hours", "GB-hours", "price"]
    assert sorted(lines[1:]) == sorted(
        [
            ["isr", "2", "1", "2", "1"],
            ["warp", "1", "1", "?", "?"],
            ["new", "1", "?", "?", "?"],
            ["total", "4", "?", "?", "?"],
        ]
    )


def test_mean_peak_memory_is_remembered_by_task(tmp_path: Path) -> None:
    from lsst.resources import ResourcePath

    root = ResourcePath(str(tmp_path), forceDirectory=True)
    save_peaks(root, [_outcome(1, 100, "isr"), _outcome(1, 300, "isr"), _outcome(1, 50, "warp")])
    save_peaks(root, [_outcome(1, 70, "warp")])
    assert load_peaks(root) == {"isr": 200.0, "warp": 70.0}


@pytest.mark.parametrize("text", ["", "1", "1,2,3", "a,b", "-1,2", "nan,1"])
def test_unusable_prices_are_refused(text: str) -> None:
    with pytest.raises(OptionsError, match="expected money for a core-hour and for a GB-hour"):
        read_price(text)


def test_report_of_several_runs_has_a_row_for_each_task(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    with Butler.from_config(Butler.makeRepo(str(repo)), writeable=True) as butler:
        root = store_roots(butler)[0]
    for n, run in enumerate(("u/me/one", "u/me/two", "u/you/one")):
        task = {"label": "isr", "quanta": 4, "done": 3, "failed": 1, "blocked": 0}
        task |= {"seconds": {"median": 2.0}, "core_hours": n + 1.0, "gb_hours": 2.0}
        content = {"format": 1, "run": run, "state": "failed", "totals": {}, "failures": [], "tasks": [task]}
        started = datetime.datetime(2026, 1, 1 + n, tzinfo=datetime.UTC)
        new_attempt(root, run, started).report_file.write(json.dumps(content).encode())
    arguments = ["report", str(repo), "u/me/*", "--price", "0.5,0.25"]
    result = CliRunner().invoke(main, arguments)
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [row[0] for row in rows] == ["run", "u/me/one", "u/me/two"], result.output
    assert rows[2] == ["u/me/two", "failed", "isr", "4", "3", "1", "0", "2.0", "s", "2", "2", "1.5"]
    value = json.loads(CliRunner().invoke(main, [*arguments, "--format", "json"]).stdout)
    assert [content["tasks"][0]["price"] for content in value] == [1.0, 1.5]
    refused = CliRunner().invoke(main, ["report", str(repo), "no/*"])
    assert refused.exit_code == 2
    assert "No run with a report matches no/*" in refused.output
