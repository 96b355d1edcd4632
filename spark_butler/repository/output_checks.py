"""Checks of an output run's names, dataset types, configurations and tasks.  Runs in the driver."""

from __future__ import annotations

__all__ = ["check_configs", "check_dataset_types", "check_name", "check_tasks"]

import logging
from collections.abc import Sequence

from lsst.daf.butler import Butler, MissingCollectionError, MissingDatasetTypeError
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from .._pipe_base import init_quanta
from ..errors import OptionsError
from ..text import brief

logger = logging.getLogger(__name__)

_PATTERN_CHARACTERS = "*?[]{}"


def check_name(option: str, name: str) -> None:
    """Check that all parts of the middleware accept the name of an output collection.

    The registry or the datastore would refuse some characters only when the run has begun.
    """
    if found := sorted(set(name).intersection(_PATTERN_CHARACTERS)):
        raise OptionsError(
            f"{option} is {name!r}; expected a name without {' '.join(found)}, which stand for patterns of "
            "names."
        )
    if not name or name != name.strip() or not name.isprintable() or "," in name:
        raise OptionsError(
            f"{option} is {name!r}; expected a name of printable characters without commas, and without "
            "blanks at its ends."
        )


def check_dataset_types(butler: Butler, graph: PredictedQuantumGraph, *, register: bool) -> None:
    """Check that the repository knows the dataset types of a graph's outputs."""
    missing = []
    for name, node in graph.pipeline_graph.dataset_types.items():
        if graph.pipeline_graph.producer_of(name) is None:
            continue
        try:
            known = butler.get_dataset_type(name)
        except MissingDatasetTypeError:
            missing.append(name)
            continue
        if not node.dataset_type.is_compatible_with(known):
            raise OptionsError(
                f"Dataset type {name!r} is {known} in the repository, but the pipeline makes "
                f"{node.dataset_type}."
            )
    if missing and not register:
        raise OptionsError(
            f"The repository has no dataset types {', '.join(sorted(missing))}; "
            "give --register-dataset-types to register them."
        )


def check_configs(butler: Butler, pipeline_graph: PipelineGraph, run: str) -> None:
    """Check that a run to be extended was made with the same configurations."""
    for label, task_node in pipeline_graph.tasks.items():
        try:
            existing = butler.get(task_node.init.config_output.dataset_type_name, collections=run)
        except (LookupError, FileNotFoundError, MissingDatasetTypeError, MissingCollectionError):
            continue
        differences: list[str] = []
        same = task_node.config.compare(  # type: ignore[no-untyped-call]
            existing, shortcut=False, output=differences.append
        )
        if not same:
            raise OptionsError(
                f"The configuration of task {label!r} is not the one that run {run!r} was made with "
                f"({'; '.join(differences[:3])}); write to another run, or mix them by --skip-init-writes."
            )


def check_tasks(butler: Butler, graph: PredictedQuantumGraph) -> None:
    """Construct each task once, as for the writing of init-outputs."""
    labels = [label for label in graph.pipeline_graph.tasks if label in init_quanta(graph)]
    if _try_tasks(butler, graph, labels) is None:
        return
    for n, label in enumerate(labels, start=1):
        # With the tasks before it, which may write its init-inputs.
        if (exc := _try_tasks(butler, graph, labels[:n])) is not None:
            raise OptionsError(f"Task {label!r} can't be made: {type(exc).__name__}: {brief(exc)}") from exc


def _try_tasks(butler: Butler, graph: PredictedQuantumGraph, labels: Sequence[str]) -> Exception | None:
    """Construct tasks, and return the exception that a constructor raises."""
    init_inputs = {
        ref.datasetType.name: ref for label in labels for ref in graph.get_init_inputs(label).values()
    }
    try:
        graph.pipeline_graph.instantiate_tasks(
            get_init_input=lambda dataset_type: butler.get(
                init_inputs[dataset_type.name].overrideStorageClass(dataset_type.storageClass)
            ),
            init_outputs=[],
            labels=labels,
        )
    except Exception as exc:  # a constructor may raise anything
        logger.debug("A task can't be constructed.", exc_info=True)
        return exc
    return None
