"""Inputs and outputs of quanta."""

from __future__ import annotations

__all__ = ["all_inputs", "all_outputs"]

from collections.abc import Iterator

from lsst.daf.butler import DatasetRef, Quantum


def all_inputs(quantum: Quantum) -> Iterator[DatasetRef]:
    """Yield all datasets that a quantum reads, init-inputs included.

    Parameters
    ----------
    quantum
        The quantum.
    """
    for refs in quantum.inputs.values():
        yield from refs
    yield from quantum.initInputs.values()


def all_outputs(quantum: Quantum) -> Iterator[DatasetRef]:
    """Yield all datasets that a quantum may make.

    Parameters
    ----------
    quantum
        The quantum.
    """
    for refs in quantum.outputs.values():
        yield from refs
