"""A repository with mock data, a pipeline of mock tasks, and the job in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from lsst.daf.butler import Butler
from lsst.daf.butler.cli import butler as butler_cli
from lsst.daf.butler.cli.cliLog import CliLog

from spark_butler.demo.s3server import EmbeddedS3

ROOT = Path(__file__).resolve().parents[2]
JOB = ROOT / "jobs" / "process_ccd.py"

_TASK = """
  {label}:
    class: lsst.pipe.base.tests.mocks.DynamicTestPipelineTask
    config:
      python: |
        from lsst.pipe.base.tests.mocks import DynamicConnectionConfig as C
        config.dimensions = ["{dimensions}"]
"""

PIPELINE = (
    "description: Mock tasks that follow each other narrowly, gather and fan out.\ntasks:"
    + _TASK.format(label="first", dimensions="detector")
    + """
        config.inputs["raw"] = C(dataset_type_name="mock_raw", dimensions=["detector"])
        config.outputs["out"] = C(dataset_type_name="mock_first", dimensions=["detector"])
        config.init_outputs["schema"] = C(dataset_type_name="mock_schema")
"""
    + _TASK.format(label="second", dimensions="detector")
    + """
        config.init_inputs["schema"] = C(dataset_type_name="mock_schema")
        config.inputs["in"] = C(dataset_type_name="mock_first", dimensions=["detector"])
        config.outputs["out"] = C(dataset_type_name="mock_second", dimensions=["detector"])
"""
    + _TASK.format(label="gather", dimensions="instrument")
    + """
        config.inputs["in"] = C(dataset_type_name="mock_second", dimensions=["detector"], multiple=True)
        config.outputs["out"] = C(dataset_type_name="mock_gather", dimensions=["instrument"])
"""
    + _TASK.format(label="scatter", dimensions="detector")
    + """
        config.inputs["all"] = C(dataset_type_name="mock_gather", dimensions=["instrument"])
        config.inputs["own"] = C(dataset_type_name="mock_second", dimensions=["detector"])
        config.outputs["out"] = C(dataset_type_name="mock_scatter", dimensions=["detector"])
"""
)


@dataclasses.dataclass(frozen=True)
class JobRepo:
    """A repository with `mock_raw` of four detectors in the chain ``defaults``."""

    root: Path
    pipeline: Path
    bucket: str
    server: EmbeddedS3

    @property
    def arguments(self) -> list[str]:
        """The options that every run needs."""
        return ["-b", str(self.root), "-i", "defaults", "-p", str(self.pipeline)]

    def contents(self) -> tuple[dict[str, Any], set[str], set[str]]:
        """All that a run might write to: collections, dataset types, objects."""
        with Butler.from_config(self.root, writeable=False) as butler:
            collections = {
                info.name: (info.type, info.children)
                for info in butler.collections.query_info("*", include_chains=True)
            }
            types = {each.name for each in butler.registry.queryDatasetTypes()}
        return collections, types, self.keys()

    def keys(self) -> set[str]:
        """Names of all objects in the bucket."""
        return set(self.server.list_keys(self.bucket))

    def datasets(self, collection: str) -> set[tuple[Any, ...]]:
        """Dataset type and data ID of all that is in a collection and in the store."""
        with Butler.from_config(self.root, writeable=False) as butler:
            refs = butler.query_all_datasets(collection, find_first=False, limit=None)
            stored = butler.stored_many(refs)
            assert all(stored.values())
            return {(ref.datasetType.name, *ref.dataId.required_values) for ref in refs}

    def get(self, dataset_type: str, collection: str, **data_id: Any) -> Any:
        """Read a dataset."""
        with Butler.from_config(self.root, writeable=False) as butler:
            return butler.get(dataset_type, instrument="Cam1", **data_id, collections=collection)


def submit(
    *arguments: str | Path, where: tuple[str, ...] = ("--master", "local[2]")
) -> subprocess.CompletedProcess[str]:
    """Run the job by ``spark-submit``, in a process of its own."""
    program = Path(sys.executable).with_name("spark-submit")
    conf = ["--conf", "spark.ui.enabled=false", "--conf", "spark.driver.bindAddress=127.0.0.1"]
    return subprocess.run(
        [str(each) for each in (program, *where, *conf, JOB, *arguments)],
        env={**os.environ, "PYSPARK_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_tool(cli: Any, *arguments: str | Path) -> str:
    """Run a stock command, which must succeed, and return what it prints."""
    CliLog.resetLog()
    result = CliRunner().invoke(cli, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def count_quanta(*arguments: str | Path) -> list[tuple[Any, ...]]:
    """Failed, blocked and successful quanta of each task, as ``butler provenance-report`` counts them."""
    text = run_tool(butler_cli.cli, "provenance-report", *arguments, "--format", "json")
    rows = json.loads(text)["tasks"]
    for row in rows:
        assert row["TOTAL"] == row["EXPECTED"] == row["Failed"] + row["Blocked"] + row["Successful"]
    return [(row["Task"], row["Failed"], row["Blocked"], row["Successful"]) for row in rows]
