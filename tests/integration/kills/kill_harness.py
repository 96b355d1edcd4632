"""A pipeline in a repository on S3, drivers that can be killed, and what they have left."""

from __future__ import annotations

__all__ = ["Drivers", "Site", "read_pipeline"]

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lsst.daf.butler import Butler, CollectionType, MissingCollectionError
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.pipe.base import Pipeline
from lsst.pipe.base.tests.mocks import DirectButlerRepo

from spark_butler.datastore.files import list_files
from spark_butler.temporaries.scratch import scratch_root
from tests.support.mock_night import insert_dimensions
from tests.support.scenarios import Outputs, read_outputs

_HERE = Path(__file__).resolve().parent

_TASK = """
  {label}:
    class: tests.support.temporaries_tasks.ProbeMockTask
    config:
      record: "{record}"
      python: |
        from lsst.pipe.base.tests.mocks import DynamicConnectionConfig as C
        config.dimensions = {dimensions}
        {lines}
"""


def read_pipeline(record: Path) -> str:
    """Write a pipeline: two tasks for each detector, one that gathers them for each visit, one more each."""
    ccd, visit = ["visit", "detector"], ["visit"]
    tasks = {
        "a": (ccd, {"i": ("mock_in", ccd, "")}, {"o": ("mock_a", ccd), "p": ("mock_pa", ccd)}),
        "b": (ccd, {"i": ("mock_a", ccd, "")}, {"o": ("mock_b", ccd)}),
        "g": (visit, {"i": ("mock_b", ccd, "multiple=True")}, {"o": ("mock_g", visit)}),
        "h": (ccd, {"i": ("mock_g", visit, ""), "j": ("mock_a", ccd, "")}, {"o": ("mock_h", ccd)}),
    }
    text = "description: Tasks that can be watched.\ntasks:"
    for label, (dimensions, inputs, outputs) in tasks.items():
        lines = [
            f'config.inputs["{name}"] = C(dataset_type_name="{kind}", dimensions={dims}, {more})'
            for name, (kind, dims, more) in inputs.items()
        ]
        lines += [
            f'config.outputs["{name}"] = C(dataset_type_name="{kind}", dimensions={dims})'
            for name, (kind, dims) in outputs.items()
        ]
        if label == "a":
            lines.append('config.init_outputs["s"] = C(dataset_type_name="mock_schema")')
        if label == "b":
            lines.append('config.init_inputs["s"] = C(dataset_type_name="mock_schema")')
        text += _TASK.format(
            label=label,
            record=record,
            dimensions=dimensions,
            lines="\n        ".join(lines),
        )
    return text


class Drivers:
    """Runs the command in processes of its own, which can be killed."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, _HERE / "driver_server.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(_HERE.parents[2]),
                "PYTHONWARNINGS": "ignore::DeprecationWarning",
                "PYSPARK_SUBMIT_ARGS": "--master local[2] --conf spark.ui.enabled=false pyspark-shell",
            },
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)

    def ask(self, **request: Any) -> int:
        """Send a request and read the answer."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


@dataclasses.dataclass
class Site:
    """A repository, what runs in it, and a record of what ran."""

    root: Path
    drivers: Drivers
    pipeline: Path
    record: Path
    expected: Outputs = dataclasses.field(default_factory=dict)
    n_quanta: int = 0

    @classmethod
    def make(cls, directory: Path, root: Path, drivers: Drivers, *, n_visits: int = 2) -> Site:
        """Fill an empty repository with dimension records and inputs, and run the pipeline once."""
        site = cls(root, drivers, directory / "pipeline.yaml", directory / "record")
        site.pipeline.write_text(read_pipeline(site.record))
        with Butler.from_config(root, writeable=True) as butler:
            insert_dimensions(butler, range(1, n_visits + 1), (1, 2, 3))
            mock = DirectButlerRepo(butler, input_run="in/all", input_chain="in")
            mock.pipeline_graph = Pipeline.from_uri(site.pipeline).to_graph()
            mock.pipeline_graph.resolve(butler.registry)
            mock.insert_datasets("mock_in")
            mock.pipeline_graph.register_dataset_types(butler)
        assert site.submit("--output-run", "undisturbed") == 0, site.log
        site.expected = site.outputs("undisturbed")
        site.n_quanta = len(site.executions())
        return site

    def submit(
        self,
        *options: str | Path,
        mine: tuple[str, int, str] | None = None,
        kill_after: tuple[int, float] | None = None,
        backend: str = "serial",
    ) -> int:
        """Run the command.

        Parameters
        ----------
        *options
            Its options, but for those that are always the same.
        mine
            Function (``module:Class.name``), number of the call, and "before"
            or "after": where the driver is killed.
        kill_after
            Number of quanta and seconds after which it is killed.
        backend
            Where the quanta run.

        Returns
        -------
        status
            Exit status, -9 if it was killed.
        """
        arguments = ["-b", self.root, *options, "--backend", backend, "--no-versions"]
        if "-g" not in options:
            arguments += ["-i", "in", "-p", self.pipeline]
        n_before = len(self.executions())
        log = self.root / "log"
        log.write_text("")
        pid = self.drivers.ask(arguments=[str(each) for each in arguments], mine=mine, log=str(log))
        if kill_after is not None:
            n_quanta, seconds = kill_after
            deadline = time.monotonic() + 60
            while len(self.executions()) < n_before + n_quanta and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return self.drivers.ask(wait=pid)

    @property
    def log(self) -> str:
        """Output of the last command."""
        return (self.root / "log").read_text()

    def executions(self) -> list[str]:
        """Task and data ID of each execution."""
        if not self.record.exists():
            return []
        return [line.split()[0] for line in self.record.read_text().splitlines()]

    def has_run(self, run: str) -> bool:
        """Whether there is a run."""
        with Butler.from_config(self.root, writeable=False) as butler:
            try:
                return butler.collections.get_info(run).type is CollectionType.RUN
            except MissingCollectionError:
                return False

    def outputs(self, run: str) -> Outputs:
        """Contents of all datasets of a run, without what differs from run to run."""
        with Butler.from_config(self.root, writeable=False) as butler:
            graph = Pipeline.from_uri(self.pipeline).to_graph()
            graph.resolve(butler.registry)
            what = SimpleNamespace(header=SimpleNamespace(output_run=run), pipeline_graph=graph)
            outputs = read_outputs(butler, what)  # type: ignore[arg-type]
        # The number of stored outputs depends on what is temporary.
        return {key: each[0] if key[0].endswith("_metadata") else each for key, each in outputs.items()}

    def assert_sound(self, run: str) -> None:
        """See that registry and datastore agree about a run, sizes included."""
        with Butler.from_config(self.root, writeable=False) as butler:
            refs = butler.query_all_datasets(run, find_first=False, limit=None)
            registered = {}
            for data in butler._datastore.export_records(refs).values():
                for tables in data.records.values():
                    for info in (info for infos in tables.values() for info in infos):
                        assert isinstance(info, StoredFileInfo)
                        registered[info.path.removeprefix(f"{run}/")] = info.file_size
            (root,) = butler.get_datastore_roots().values()
            assert root is not None
            assert registered == list_files(root.join(run, forceDirectory=True))
            assert not list_files(scratch_root(root))
