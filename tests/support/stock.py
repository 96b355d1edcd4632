"""Commands and files of the middleware, as tests and benchmarks use them."""

from __future__ import annotations

__all__ = ["read_graph", "run_pipetask"]

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from lsst.pipe.base.quantum_graph import PredictedQuantumGraph


def read_graph(file: str | Path) -> PredictedQuantumGraph:
    """Read all that execution needs of a quantum graph.

    Parameters
    ----------
    file
        The file.
    """
    with PredictedQuantumGraph.open(file) as reader:
        reader.read_execution_quanta()
        return reader.finish()


def run_pipetask(
    *arguments: str | Path, paths: Iterable[Path] = (), environment: Mapping[str, str] | None = None
) -> None:
    """Run a command of ``pipetask`` to its end.

    Parameters
    ----------
    *arguments
        What follows ``pipetask``.
    paths
        Where its Python finds further modules.
    environment
        Its environment, by default that of this process.

    Raises
    ------
    RuntimeError
        Raised if it fails, with the end of what it has printed.
    """
    process = subprocess.run(
        [str(Path(sys.executable).with_name("pipetask")), *map(str, arguments)],
        env={**(environment or os.environ), "PYTHONPATH": os.pathsep.join(map(str, paths))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if process.returncode:
        raise RuntimeError(f"pipetask {arguments[0]} failed:\n{process.stdout[-3000:]}")
