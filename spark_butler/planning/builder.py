"""Predicted quantum graph, as ``pipetask qgraph`` builds it.  Runs in the driver; writes to no repository."""

from __future__ import annotations

__all__ = ["build_predicted_graph"]

import logging
import uuid
from collections.abc import Collection, Sequence
from types import EllipsisType
from typing import Any

from astropy.table import Table
from lsst.ctrl.mpexec.cli.butler_factory import ButlerFactory
from lsst.ctrl.mpexec.cli.utils import summarize_quantum_graph
from lsst.daf.butler import Butler, InvalidQueryError, MissingCollectionError
from lsst.daf.butler.utils import globToRegex
from lsst.pipe.base.all_dimensions_quantum_graph_builder import (
    AllDimensionsQuantumGraphBuilder,
    DatasetQueryConstraintVariant,
)
from lsst.pipe.base.dot_tools import graph2dot
from lsst.pipe.base.mermaid_tools import graph2mermaid
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph, PredictedQuantumGraphComponents
from lsst.pipe.base.quantum_graph_builder import QuantumGraphBuilderError
from lsst.resources import ResourcePath

from .._daf_butler import fetch_run_ids
from ..errors import OptionsError, RepositoryError
from ..masking import hide_secrets
from ..repository.collection_notes import read_temporaries
from ..repository.output_checks import check_configs
from ..repository.unknown_names import check_collections, check_input_types, explain_query, has_collection
from ..temporaries.selection import find_temporary_types
from .dataset_ids import check_outputs_in_the_way, settle_dataset_ids
from .request import RunRequest

logger = logging.getLogger(__name__)


def build_predicted_graph(request: RunRequest, factory: Any) -> PredictedQuantumGraph | None:
    """Build a graph like ``pipetask qgraph``; return `None` if it is empty.

    Its dataset IDs are the same in a second build.
    """
    pipeline_graph = _resolve(request, factory)
    temporary = find_temporary_types(pipeline_graph, request.options)
    retained = request.read_retained()
    butler, collections, run = _open_source(request)
    with butler:
        skip_existing_in = _find_skipped(request, butler, run)
        existing: frozenset[uuid.UUID] = frozenset()
        if run is not None and request.extend_run and not request.brings_graph:
            if not request.skip_init_writes:
                # Checked first: after a change of a configuration, "all quanta have been done" misleads.
                check_configs(butler, pipeline_graph, run)
            existing = fetch_run_ids(butler, run)
            if read_temporaries(butler, [run]) - temporary.keys():
                # Only the engine knows the quanta that must run again because an output is stored now.
                skip_existing_in = tuple(name for name in _flatten(butler, skip_existing_in) if name != run)
        absent = temporary.keys() | read_temporaries(butler, _flatten(butler, skip_existing_in))
        builder = _make_builder(
            request,
            pipeline_graph,
            butler,
            skip_existing_in=skip_existing_in,
            # The builder refuses patterns if no quanta are skipped.
            retained=_retained_types(pipeline_graph, retained, absent) if skip_existing_in else None,
            collections=collections,
            run=run,
        )
        metadata = {
            "butler_argument": hide_secrets(request.source_repo),
            "extend_run": request.extend_run,
            "skip_existing_in": skip_existing_in,
            "skip_existing": request.skip_existing,
            "retained_dataset_types": request.retained_dataset_types,
            "data_query": request.where,
        }
        try:
            components = builder.finish(
                request.output, metadata=metadata, attach_datastore_records=request.qgraph_datastore_records
            )
        except InvalidQueryError as exc:
            raise explain_query(butler, request.where or "", exc) from exc
        except QuantumGraphBuilderError:
            check_input_types(butler, pipeline_graph)
            raise
    if existing and not request.clobber_outputs:
        check_outputs_in_the_way(components, existing)
    settle_dataset_ids(components, keep=existing)
    return _finish(request, components)


def _open_source(request: RunRequest) -> tuple[Butler, Sequence[str], str | None]:
    """Open the repository of the inputs; return the collections to search there, and the output run."""
    output = request.output_collections()
    open_butler = ButlerFactory.make_butler_and_collections
    if request.input_repo is None:
        return open_butler(request.repo, inputs=list(request.inputs), **output)
    # An existing chain has its inputs already.
    target, _, run = open_butler(request.repo, inputs=(), **output)
    target.close()
    nowhere: dict[str, Any] = dict.fromkeys(output)
    butler, collections, _ = open_butler(request.input_repo, inputs=list(request.inputs), **nowhere)
    if run is not None and has_collection(butler, run):
        butler.close()
        raise OptionsError(
            f"The repository of the inputs has a collection {run!r}, too; choose another --output-run."
        )
    return butler, collections, run


def _find_skipped(request: RunRequest, butler: Butler, run: str | None) -> tuple[str, ...]:
    """Return the collections whose quanta are skipped, and warn about a name that does not exist."""
    try:
        check_collections(butler, request.skip_existing_in)
    except RepositoryError as exc:
        # pipetask skips nothing either in this case.
        logger.warning("--skip-existing-in has no effect: %s", exc)
    if request.brings_graph:
        # Without the output run: the engine finds the finished quanta of that run.
        return request.skip_existing_in
    return request.skip_existing_in + ((run,) if request.skip_existing and run is not None else ())


def _finish(request: RunRequest, components: PredictedQuantumGraphComponents) -> PredictedQuantumGraph | None:
    """Save and show a graph as the request requires; return `None` for an empty graph."""
    # By default, it is the command line as it was given.
    components.header.command = hide_secrets(components.header.command)
    if file := request.save_qgraph:
        components.write(file)
    graph = components.assemble()
    if not summarize_quantum_graph(graph):
        return None
    if file := request.qgraph_dot:
        graph2dot(graph, file)
    if file := request.qgraph_mermaid:
        graph2mermaid(graph, file)
    request.show.show_graph_info(graph, request.source_repo)
    return graph


def _make_builder(
    request: RunRequest,
    pipeline_graph: PipelineGraph,
    butler: Butler,
    *,
    skip_existing_in: Sequence[str],
    retained: list[str] | None,
    collections: Sequence[str],
    run: str | None,
) -> AllDimensionsQuantumGraphBuilder:
    """Build pipe_base's graph builder from the options of a request."""
    return AllDimensionsQuantumGraphBuilder(
        pipeline_graph,
        butler,
        where=request.where or "",
        skip_existing_in=skip_existing_in,
        retained_dataset_types=retained,
        prune_unanchored_quanta=request.prune_unanchored_quanta,
        # Quanta that succeeded and run again only for a temporary may have registered outputs.
        clobber=True,
        dataset_query_constraint=DatasetQueryConstraintVariant.fromExpression(
            request.dataset_query_constraint
        ),
        input_collections=collections,
        output_run=run,
        data_id_tables=[_read_table(file) for file in request.data_id_table],
    )


def _retained_types(
    pipeline_graph: PipelineGraph, retained: list[str] | None, absent: Collection[str]
) -> list[str] | None:
    """Return patterns of the dataset types that a skipped quantum must have left; `None` for all types.

    ``absent`` names the types that are temporary, or were so in the runs whose quanta are skipped.
    """
    if not absent:
        return retained
    expressions = globToRegex(retained)
    names = set(pipeline_graph.dataset_types) - set(absent)
    if not isinstance(expressions, EllipsisType):
        names = {
            name
            for name in names
            if any(name == each if isinstance(each, str) else each.search(name) for each in expressions)
        }
    # An empty list would mean all types to the builder; inputs that no task makes always exist.
    names.update(name for name in pipeline_graph.dataset_types if pipeline_graph.producer_of(name) is None)
    return sorted(names)


def _flatten(butler: Butler, collections: Sequence[str]) -> Sequence[str]:
    """Return the runs in collections, which need not exist yet."""
    try:
        return butler.collections.query(collections, flatten_chains=True) if collections else ()
    except MissingCollectionError:
        return ()


def _read_table(file: str) -> Table:
    """Read a table of data IDs; the builder names its file in messages."""
    with ResourcePath(file).as_local() as local:
        table = Table.read(local.ospath)
    table.meta["filename"] = file
    return table


def _resolve(request: RunRequest, factory: Any) -> PipelineGraph:
    """Build the pipeline graph, with its dataset types."""
    pipeline_graph: PipelineGraph = factory(resolve=False).copy()
    if request.mock:
        from lsst.pipe.base.tests.mocks import mock_pipeline_graph

        pipeline_graph = mock_pipeline_graph(
            pipeline_graph,
            unmocked_dataset_types=request.unmocked_dataset_types,
            force_failures=request.mock_failure,
        )
    with Butler.from_config(request.source_repo, writeable=False) as butler:
        check_collections(butler, request.inputs)
        pipeline_graph.resolve(butler.registry)
    return pipeline_graph
