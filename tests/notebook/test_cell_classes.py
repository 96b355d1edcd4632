"""Tasks that are written in a notebook's cell travel to workers with their configurations."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from lsst.pipe.base import Pipeline
from lsst.pipe.base.pipeline_graph import TaskNode

from spark_butler.errors import OptionsError
from spark_butler.worker.notebook_classes import check_tasks, dump_by_name, dump_with_classes

CELL = """
import lsst.pex.config as pc
import lsst.pipe.base as pb
import lsst.pipe.base.connectionTypes as cT

class CellConnections(pb.PipelineTaskConnections, dimensions=("instrument", "detector")):
    raw = cT.Input(
        doc="i", name="cell_in", storageClass="StructuredDataDict", dimensions=("instrument", "detector")
    )
    out = cT.Output(
        doc="o", name="cell_out", storageClass="StructuredDataDict", dimensions=("instrument", "detector")
    )

class CellConfig(pb.PipelineTaskConfig, pipelineConnections=CellConnections):
    factor = pc.Field[float](doc="f", default=1.0, check=lambda value: value > 0)

class CellTask(pb.PipelineTask):
    ConfigClass = CellConfig
    _DefaultName = "cell"
    def run(self, raw):
        return pb.Struct(out={"twice": 2 * raw["value"] * self.config.factor})
"""


@pytest.fixture
def cell() -> Iterator[dict[str, Any]]:
    """Run a cell in ``__main__``, and give its names, which are gone again after the test."""
    main = vars(sys.modules["__main__"])
    before = dict(main)
    exec(CELL, main)
    yield main
    for name in main.keys() - before.keys():
        del main[name]


@pytest.fixture
def node(cell: dict[str, Any]) -> TaskNode:
    """A node of the task of the cell."""
    pipeline = Pipeline("a cell")
    pipeline.addTask(cell["CellTask"], "cell")
    pipeline.addConfigOverride("cell", "factor", 3.0)
    return pipeline.to_graph().tasks["cell"]


def _forget(cell: dict[str, Any]) -> dict[str, type]:
    """Take the classes out of ``__main__``, as in a worker."""
    return {name: cell.pop(name) for name in ("CellConnections", "CellConfig", "CellTask")}


def test_task_of_a_cell_runs_in_another_process(cell: dict[str, Any], node: TaskNode) -> None:
    data = dump_with_classes({"cell": node})
    old = _forget(cell)
    there = pickle.loads(data)[1]["cell"]
    assert cell["CellTask"] is there.task_class
    assert cell["CellConfig"] is not old["CellConfig"]
    assert type(there.config) is cell["CellConfig"]
    assert there.config.factor == 3.0
    task = there.task_class(config=there.config)
    assert task.run({"value": 2}).out == {"twice": 12.0}
    connections = there.config.connections.ConnectionsClass(config=there.config)
    assert set(connections.allConnections) == {"raw", "out"}
    with pytest.raises(ValueError, match="factor"):
        there.config.factor = -1.0


def test_base_classes_get_no_fields_of_a_cell(cell: dict[str, Any], node: TaskNode) -> None:
    from lsst.pipe.base import PipelineTaskConfig

    before = set(PipelineTaskConfig._fields)
    data = dump_with_classes(node)
    _forget(cell)
    pickle.loads(data)
    assert set(PipelineTaskConfig._fields) == before


def test_later_pickles_refer_to_classes_sent_before(cell: dict[str, Any], node: TaskNode) -> None:
    first, then = dump_with_classes(node), dump_by_name(node.task_class)
    assert len(then) < 100
    _forget(cell)
    there = pickle.loads(first)[1]
    assert pickle.loads(then) is there.task_class


def test_unpicklable_class_that_is_not_needed_is_skipped(cell: dict[str, Any], node: TaskNode) -> None:
    cell["generator"] = (n for n in range(3))
    exec("class Other(pb.PipelineTask):\n    def run(self):\n        return next(generator)", cell)
    data = dump_with_classes(node)
    check_tasks({"cell": node})
    _forget(cell)
    del cell["Other"]
    pickle.loads(data)
    assert "Other" not in cell


def test_unpicklable_task_is_refused(cell: dict[str, Any]) -> None:
    cell["generator"] = (n for n in range(3))
    exec(CELL.replace('{"twice": 2', '{"twice": next(generator)'), cell)
    pipeline = Pipeline("a cell")
    pipeline.addTask(cell["CellTask"], "cell")
    with pytest.raises(OptionsError, match="'cell' can't be sent to workers: .*generator"):
        check_tasks(pipeline.to_graph().tasks)
