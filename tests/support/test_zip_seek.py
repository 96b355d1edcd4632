"""The bug of some releases of CPython for which the upstream tests get help, with nothing of this package."""

from __future__ import annotations

from pathlib import Path

import pytest
from lsst.pipe.base.mp_graph_executor import MPGraphExecutor
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph, ProvenanceQuantumGraphReader
from lsst.pipe.base.quantum_graph._multiblock import InvalidQuantumGraphFileError
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor
from lsst.pipe.base.tests.mocks import DirectButlerRepo

from tests.support.zip_seek import has_bug, seek_by_reading


def test_patch_reads_members_correctly() -> None:
    with seek_by_reading():
        assert not has_bug()


def test_bug_alone_breaks_provenance_graphs(tmp_path: Path) -> None:
    path = str(tmp_path / "provenance.qg")
    with DirectButlerRepo.make_temporary("base.yaml") as (helper, _):
        for label in "abcdef":
            helper.add_task(label, dimensions=["detector"])
        graph = helper.make_quantum_graph()
        helper.butler.collections.register(graph.header.output_run)
        graph.init_output_run(helper.butler, existing=False)
        executor = SingleQuantumExecutor(butler=helper.butler)
        MPGraphExecutor(num_proc=1, timeout=300.0, quantum_executor=executor).execute(
            graph, provenance_graph_file=path
        )
    if has_bug():
        with pytest.raises((EOFError, InvalidQuantumGraphFileError)):
            _count_logs(path, graph)
    with seek_by_reading():
        assert _count_logs(path, graph) == 24


def _count_logs(path: str, graph: PredictedQuantumGraph) -> int:
    """Read the log of each quantum by itself."""
    n_read = 0
    for quantum_id in graph.quantum_only_xgraph:
        with ProvenanceQuantumGraphReader.open(path) as reader:
            n_read += len(reader.fetch_logs([quantum_id]))
    return n_read
