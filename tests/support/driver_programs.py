"""A driver program of its own for each test that needs another Spark than the one of the other tests."""

from __future__ import annotations

__all__ = ["Driver", "main"]

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.support.clusters import stop_tree

if TYPE_CHECKING:
    from tests.support.scenarios import ScenarioRepo

_HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Execution:
    """A line of the record of executions."""

    label: str
    values: str
    child: int
    worker: int


@dataclasses.dataclass
class Driver:
    """A running driver program, and the files that it and its tasks share with the test."""

    folder: Path
    process: subprocess.Popen[bytes]

    @classmethod
    @contextlib.contextmanager
    def start(
        cls,
        scenario: str,
        folder: Path,
        master: str,
        *,
        hold: bool = False,
        options: Mapping[str, Any] | None = None,
        conf: Mapping[str, str] | None = None,
    ) -> Iterator[Driver]:
        """Start a driver program for a scenario of this module; its end is certain."""
        command = [
            sys.executable,
            "-m",
            "tests.support.driver_programs",
            scenario,
            folder,
            master,
            "--options",
            json.dumps(options or {}),
        ]
        command += ["--conf", json.dumps(conf or {}), *(["--hold"] if hold else [])]
        path = [str(_HERE.parents[1])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]),
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_LOCAL_IP": "127.0.0.1",
        }
        environment.pop("PYSPARK_GATEWAY_PORT", None)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                list(map(str, command)), env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield cls(folder, process)
        finally:
            (folder / "hold").unlink(missing_ok=True)
            stop_tree(process)

    @property
    def log(self) -> str:
        """End of the driver's log."""
        return (self.folder / "log").read_text(errors="replace")[-6000:]

    @property
    def executions(self) -> list[Execution]:
        """Executions so far."""
        try:
            lines = (self.folder / "record").read_text().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            name, child, worker = line.split()
            label, _, values = name.rstrip(")").partition("(")
            found.append(Execution(label, values, int(child), int(worker)))
        return found

    def count(self, label: str) -> Counter[str]:
        """Count the executions of each quantum of a task."""
        return Counter(each.values for each in self.executions if each.label == label)

    def wait_for(self, label: str, seconds: float = 300) -> Execution:
        """Wait until a task is held, and say where."""
        # What was recorded before that is the reference run's.
        self._wait(lambda: (self.folder / "hold").exists() or None, seconds)
        return self._wait(
            lambda: next((each for each in reversed(self.executions) if each.label == label), None), seconds
        )

    def wait_for_result(self, seconds: float = 600) -> dict[str, Any]:
        """Wait for the end of the run."""
        path = self.folder / "result.json"
        result: dict[str, Any] = self._wait(
            lambda: json.loads(path.read_text()) if path.exists() else None, seconds
        )
        return result

    def _wait[T](self, look: Callable[[], T | None], seconds: float) -> T:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if (found := look()) is not None:
                return found
            assert self.process.poll() is None, self.log
            time.sleep(0.1)
        raise TimeoutError(self.log)


def executor_of(pid: int) -> psutil.Process:
    """Find the executor that a Python process belongs to."""
    for parent in psutil.Process(pid).parents():
        if "CoarseGrainedExecutorBackend" in " ".join(parent.cmdline()):
            return parent
    raise LookupError(f"process {pid} belongs to no executor")


_START = {"dataset_type_name": "start", "mock_storage_class": True}


def _gathered(name: str, **more: Any) -> dict[str, Any]:
    return {"dataset_type_name": name, "dimensions": ["detector"], "multiple": True, **more}


def three_stages(scenario: ScenarioRepo, folder: Path, options: Mapping[str, Any]) -> list[str]:
    """Two tasks for each detector, a gather, and a task that reads of both."""
    scenario.n_detectors = 4
    record = str(folder / "record")
    hold = {label: str(folder / "hold") if label == options.get("held") else "" for label in "bc"}
    array = {"storage_class": "NumpyArray"}
    scenario.real(
        "a", "make_array", {"i": _START}, {"o": ("a_out", "NumpyArray")}, deferred=["i"], record=record
    )
    scenario.real("side", "describe", {"i": ("a_out", "NumpyArray")}, {"o": "side_end"}, record=record)
    sums = {"dataset_type_name": "b_out", "dimensions": ["instrument"]}
    scenario.real(
        "b",
        "describe",
        {"i": _gathered("a_out", **array)},
        {"o": sums},
        dimensions=["instrument"],
        record=record,
        hold=hold["b"],
    )
    scenario.real(
        "c",
        "describe",
        {"i": sums, "j": ("a_out", "NumpyArray")},
        {"o": "c_end"},
        record=record,
        hold=hold["c"],
    )
    return ["a_out", "b_out"]


def one_large(scenario: ScenarioRepo, folder: Path, options: Mapping[str, Any]) -> list[str]:
    """One large array from one worker to another."""
    scenario.n_detectors = 1
    array = ("large", "NumpyArray")
    scenario.real(
        "make",
        "make_large",
        {"i": _START},
        {"o": array},
        deferred=["i"],
        options={"size": options["bytes"] / 8},
    )
    scenario.real("probe", "probe_ends", {"i": array}, {"o": "probe_end"})
    return ["large"]


def many_large(scenario: ScenarioRepo, folder: Path, options: Mapping[str, Any]) -> list[str]:
    """Many arrays from many groups to one."""
    from lsst.daf.butler import Butler

    butler: Butler = scenario.butler
    records = butler.query_dimension_records("detector", instrument="Cam1", limit=1)
    for n in range(5, options["count"] + 1):
        fields = {**records[0].toDict(), "id": n, "full_name": f"X{n}", "name_in_raft": f"X{n}"}
        butler.registry.insertDimensionData("detector", fields)
    scenario.n_detectors = options["count"]
    scenario.real(
        "make",
        "make_large",
        {"i": _START},
        {"o": ("large", "NumpyArray")},
        deferred=["i"],
        options={"size": options["bytes"] / 8},
    )
    scenario.real(
        "gather",
        "gather",
        {"i": _gathered("large", storage_class="NumpyArray")},
        {"o": {"dataset_type_name": "gather_end", "dimensions": ["instrument"]}},
        dimensions=["instrument"],
    )
    return ["large"]


_SCENARIOS = {each.__name__: each for each in (three_stages, one_large, many_large)}


def main(arguments: Sequence[str]) -> None:
    """Run a scenario on Spark, and write its result to a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario")
    parser.add_argument("folder", type=Path)
    parser.add_argument("master")
    parser.add_argument("--options", type=json.loads)
    parser.add_argument("--conf", type=json.loads)
    parser.add_argument("--hold", action="store_true")
    given = parser.parse_args(arguments)

    from lsst.daf.butler import Butler
    from lsst.pipe.base.tests.mocks import DirectButlerRepo

    from spark_butler.spark.backend import SparkBackend
    from spark_butler.spark.session import make_session
    from tests.support.scenarios import ScenarioRepo, read_outputs

    folder: Path = given.folder
    config = Butler.makeRepo(folder / "repo")
    with Butler.from_config(config, writeable=True) as butler:
        scenario = ScenarioRepo(DirectButlerRepo(butler, "base.yaml"))
        temporary = _SCENARIOS[given.scenario](scenario, folder, given.options)
        expected = None
        if given.hold or given.options.get("compare"):
            expected = scenario.run_reference()
            (folder / "record").unlink(missing_ok=True)
        session = make_session(
            given.master,
            app_name="temporaries",
            conf={
                "spark.ui.enabled": "false",
                "spark.driver.host": "127.0.0.1",
                "spark.executorEnv.PYTHONPATH": os.environ["PYTHONPATH"],
                "spark.local.dir": str(folder / "spark"),
                **given.conf,
            },
        )
        session.sparkContext.setLogLevel("ERROR")
        backend = SparkBackend(session)
        # Start what groups start with, so that time and memory are those of the groups.
        session.sparkContext.parallelize([0], 1).map(str).collect()
        if given.hold:
            (folder / "hold").touch()
        began = time.monotonic()
        graph, result = scenario.run(
            backend, temporary=tuple(temporary), group_by=given.options.get("grain", "fused")
        )
        wall = time.monotonic() - began
        found = read_outputs(butler, graph)
        failures = [each.report.exceptionInfo for each in result.failed]
        stored = {key: value for key, value in (expected or found).items() if key[0] not in temporary}
        report = {
            "quanta": len(graph.quantum_only_xgraph),
            "outcomes": len(result.outcomes),
            "failed": [info.message for info in failures if info is not None],
            "n_failed": len(result.failed),
            "recovered": sum(each.recovered for each in result.outcomes.values()),
            "wall": wall,
            "equal": found == stored,
            "datasets": len(found),
            "ends": {name: value for (name, _), value in found.items() if name.endswith("_end")},
        }
        session.stop()
    partial = folder / "result.partial"
    partial.write_text(json.dumps(report))
    partial.rename(folder / "result.json")


if __name__ == "__main__":
    main(sys.argv[1:])
