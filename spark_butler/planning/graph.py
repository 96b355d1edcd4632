"""Predicted quantum graph of a run, built or read from a file.

Runs in the driver; nothing here writes to the repository.
"""

from __future__ import annotations

__all__ = [
    "apply_fixup",
    "build_graph",
    "read_task_modules",
    "show_pipeline",
    "task_modules",
]

import contextlib
import logging
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import networkx
from astropy.table import Table
from lsst.ctrl.mpexec.cli import script
from lsst.ctrl.mpexec.cli.butler_factory import ButlerFactory
from lsst.ctrl.mpexec.cli.utils import summarize_quantum_graph
from lsst.daf.butler import Butler, InvalidQueryError, MissingCollectionError
from lsst.pipe.base.all_dimensions_quantum_graph_builder import (
    AllDimensionsQuantumGraphBuilder,
    DatasetQueryConstraintVariant,
)
from lsst.pipe.base.dot_tools import graph2dot
from lsst.pipe.base.mermaid_tools import graph2mermaid
from lsst.pipe.base.pipeline_graph import PipelineGraph, TaskImportMode
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_graph_builder import OutputExistsError
from lsst.resources import ResourcePath

from .._daf_butler import fetch_run_ids
from .._pipe_base import import_graph_fixup
from ..errors import EmptyGraphError, NothingToDo, OptionsError, UserError
from ..repository.collection_notes import read_temporaries
from ..repository.output_run import check_configs
from ..temporaries.dataset_types import find_temporary_types
from ..text import brief
from .dataset_ids import check_outputs_in_the_way, settle_dataset_ids
from .patterns import retained_types
from .request import RunRequest

logger = logging.getLogger(__name__)

# With it the graph builder begins some lines of Python.
_RECIPE = "To reproduce this query"

# A graph from a file knows its collections; see `spark_butler.repository.output_run.OutputRequest`.
_NO_OUTPUT: dict[str, Any] = {
    "input": (),
    "output": None,
    "output_run": None,
    "extend_run": False,
    "rebase": False,
    "replace_run": False,
    "prune_replaced": None,
}


def show_pipeline(request: RunRequest) -> Any:
    """Build the pipeline and show of it what was asked for.

    Parameters
    ----------
    request
        What the user asks for.

    Returns
    -------
    factory
        The factory of the pipeline graph, for `build_graph`; `None` when the
        graph comes from a file.

    Raises
    ------
    spark_butler.errors.UserError
        Raised if the pipeline, a task or a configuration can't be used.
    """
    if request.graph_file is not None:
        return None
    arguments = request.pipetask_arguments()
    shows_graph = not {"pipeline-graph", "task-graph", "inputs"}.isdisjoint(request.show.commands)
    if not (shows_graph or request.pipeline_dot or request.pipeline_mermaid):
        # Opened for nothing, otherwise.
        del arguments["butler_config"]
    with _refusing("The pipeline can't be built"):
        try:
            factory = script.build(**arguments, show=request.show)
        except KeyError as exc:
            deleted = {action.label for action in request.pipeline_actions}
            if exc.args and exc.args[0] in deleted:
                raise OptionsError(f"--delete {exc.args[0]}: the pipeline has no such task.") from exc
            raise
        if not request.show.handled:
            factory(resolve=False)
        return factory


def task_modules(pipeline_graph: PipelineGraph) -> list[str]:
    """List the modules that the tasks of a pipeline are in.

    Parameters
    ----------
    pipeline_graph
        The pipeline; its dataset types may be unknown yet.
    """
    return sorted({node.task_class_name.rpartition(".")[0] for node in pipeline_graph.tasks.values()})


def read_task_modules(file: str) -> list[str]:
    """List the modules that the tasks of a graph in a file are in, without reading its quanta.

    Parameters
    ----------
    file
        The file.

    Returns
    -------
    modules
        Their names; none where the file can't be read, of which `build_graph`
        gives the reason, or is of the older format, which is read whole only.

    Raises
    ------
    spark_butler.errors.OptionsError
        Raised if there is no such file.
    """
    _check_graph_file(file)
    uri = ResourcePath(file)
    if uri.getExtension() != ".qg":
        return []
    try:
        with PredictedQuantumGraph.open(uri, import_mode=TaskImportMode.DO_NOT_IMPORT) as reader:
            return task_modules(reader.pipeline_graph)
    except Exception:  # noqa: BLE001  (as many as there are ways for a file to be broken)
        logger.debug("The pipeline of %s can't be read.", file, exc_info=True)
        return []


def build_graph(request: RunRequest, factory: Any) -> PredictedQuantumGraph:
    """Build the predicted quantum graph that a user asks for, or read it from a file.

    Parameters
    ----------
    request
        What the user asks for.
    factory
        What `show_pipeline` returned.

    Returns
    -------
    graph
        The graph, complete for execution, with at least one quantum.

    Raises
    ------
    spark_butler.errors.UserError
        Raised if the collections, pipeline, tasks, query or file can't be
        used, or if the graph is empty.
    """
    what = "The quantum graph can't be built"
    if (file := request.graph_file) is not None:
        _check_graph_file(file)
        what = f"The quantum graph can't be read from {file!r}"
    with contextlib.ExitStack() as stack:
        messages = stack.enter_context(_keep_messages())
        stack.enter_context(_refusing(what))
        try:
            if request.graph_file is not None:
                arguments = {**request.pipetask_arguments(), **_NO_OUTPUT, "retained_dataset_types": None}
                graph = script.qgraph(None, **arguments, show=request.show, for_execution=True)
            else:
                graph = _build(request, factory)
        except InvalidQueryError as exc:
            raise OptionsError(f"The data query {request.where!r} can't be used: {brief(exc)}") from exc
        except OutputExistsError as exc:
            raise OptionsError(
                "Outputs of earlier attempts are in the way; give --clobber-outputs to replace them: "
                f"{brief(exc)}"
            ) from exc
    if graph is None:
        raise _empty_graph(request, messages)
    return graph


def _empty_graph(request: RunRequest, messages: list[str]) -> EmptyGraphError:
    """Return the error for an empty graph, with the reasons that the builder logged."""
    if request.graph_file is not None:
        return EmptyGraphError(f"The quantum graph in {request.graph_file!r} is empty.")
    # The recipe was logged, and is nothing for one line.
    reasons = [message.partition(_RECIPE)[0] for message in messages]
    reason = " ".join(line.strip() for reason in reasons for line in reason.splitlines())
    query = f" (data query {request.where!r})" if request.where else ""
    if not reason and (request.skip_existing or request.skip_existing_in):
        return NothingToDo(f"Nothing left to do: all selected quanta have been done before{query}.")
    reason = reason or "all quanta that it selects lack inputs."
    return EmptyGraphError(f"The quantum graph is empty{query}: {reason}")


def _check_graph_file(file: str) -> None:
    """Look whether a graph may be in a file."""
    uri = ResourcePath(file)
    if uri.getExtension() not in (".qg", ".qgraph"):
        raise OptionsError(f"--qgraph is {file!r}; expected a file with the extension .qg or .qgraph.")
    if not uri.exists():
        raise OptionsError(f"--qgraph {file!r} does not exist.")


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turn whatever the middleware raises into a `UserError`: what it refuses is what it was given."""
    try:
        yield
    except UserError:
        raise
    except Exception as exc:
        logger.debug("%s.", what, exc_info=True)
        raise UserError(f"{what}: {_reason(exc)}") from exc


def _reason(exc: Exception) -> str:
    """Say in a line what the middleware can't use."""
    text = brief(exc)
    if exc.__cause__ is not None and (cause := brief(exc.__cause__)) not in text:
        text = f"{text.rstrip('.')}: {cause}"
    if isinstance(exc, FileNotFoundError):
        return f"file not found: {text}"
    if isinstance(exc, ImportError):
        return f"a task can't be imported: {text}"
    if isinstance(exc, ValueError | TypeError | RuntimeError):
        return text
    return f"{type(exc).__name__}: {text}"


def _build(request: RunRequest, factory: Any) -> PredictedQuantumGraph | None:
    """Build a graph as ``pipetask qgraph`` does, but one that can be built again."""
    pipeline_graph = _resolve(request, factory)
    temporary = find_temporary_types(pipeline_graph, request.options)
    retained = request.read_retained()
    butler, collections, run = ButlerFactory.make_butler_and_collections(
        request.repo,
        output=request.output,
        output_run=request.output_run,
        inputs=list(request.inputs),
        extend_run=request.extend_run,
        rebase=request.rebase,
        replace_run=request.replace_run,
        prune_replaced=request.prune_replaced,
    )
    with butler:
        skip_existing_in = request.skip_existing_in
        if request.skip_existing and run is not None:
            skip_existing_in += (run,)
        existing: frozenset[uuid.UUID] = frozenset()
        if run is not None and request.extend_run:
            if not request.skip_init_writes:
                # Before it turns out that all quanta have been done, with another configuration.
                check_configs(butler, pipeline_graph, run)
            existing = fetch_run_ids(butler, run)
            if read_temporaries(butler, [run]) - temporary.keys():
                # Only the engine can see which quanta have to make again what is to be kept now.
                skip_existing_in = tuple(name for name in _flatten(butler, skip_existing_in) if name != run)
        absent = temporary.keys() | read_temporaries(butler, _flatten(butler, skip_existing_in))
        builder = AllDimensionsQuantumGraphBuilder(
            pipeline_graph,
            butler,
            where=request.where or "",
            skip_existing_in=skip_existing_in,
            # The builder refuses them where nothing is skipped.
            retained_dataset_types=(
                retained_types(pipeline_graph, retained, absent) if skip_existing_in else None
            ),
            prune_unanchored_quanta=request.prune_unanchored_quanta,
            # What is in the way of quanta that succeeded, and run for a temporary only, is no reason to stop.
            clobber=True,
            dataset_query_constraint=DatasetQueryConstraintVariant.fromExpression(
                request.dataset_query_constraint
            ),
            input_collections=collections,
            output_run=run,
            data_id_tables=[_read_table(file) for file in request.data_id_table],
        )
        metadata = {
            "butler_argument": request.repo,
            "extend_run": request.extend_run,
            "skip_existing_in": skip_existing_in,
            "skip_existing": request.skip_existing,
            "retained_dataset_types": request.retained_dataset_types,
            "data_query": request.where,
        }
        components = builder.finish(
            request.output,
            metadata=metadata,
            attach_datastore_records=request.qgraph_datastore_records,
        )
    if existing and not request.clobber_outputs:
        check_outputs_in_the_way(components, existing)
    settle_dataset_ids(components, keep=existing)
    if file := request.save_qgraph:
        components.write(file)
    graph = components.assemble()
    if not summarize_quantum_graph(graph):
        return None
    if file := request.qgraph_dot:
        graph2dot(graph, file)
    if file := request.qgraph_mermaid:
        graph2mermaid(graph, file)
    request.show.show_graph_info(graph, request.repo)
    return graph


def _flatten(butler: Butler, collections: Sequence[str]) -> Sequence[str]:
    """Find the runs among collections that may not exist yet."""
    try:
        return butler.collections.query(collections, flatten_chains=True) if collections else ()
    except MissingCollectionError:
        return ()


def _read_table(file: str) -> Table:
    """Read a table of data IDs, which the builder wants to name in its messages."""
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
    with Butler.from_config(request.repo, writeable=False) as butler:
        pipeline_graph.resolve(butler.registry)
    return pipeline_graph


def apply_fixup(graph: PredictedQuantumGraph, name: str | None) -> networkx.DiGraph[uuid.UUID]:
    """Take the quanta of a graph and let a graph fixup add edges to them.

    Parameters
    ----------
    graph
        The graph.
    name
        Name of a class or factory of
        `lsst.pipe.base.execution_graph_fixup.ExecutionGraphFixup`, or nothing.

    Returns
    -------
    xgraph
        The quanta with the edges to respect.

    Raises
    ------
    spark_butler.errors.UserError
        Raised if the fixup can't be imported or made, or fails.
    spark_butler.errors.OptionsError
        Raised if its edges make a cycle.
    """
    xgraph = graph.quantum_only_xgraph.copy()
    if not name:
        return xgraph
    with _refusing(f"--graph-fixup {name!r} can't be used"):
        fixup = import_graph_fixup(name)
        assert fixup is not None
        try:
            fixup.fixup_graph(xgraph, graph.quanta_by_task)
        except NotImplementedError:
            # The older form of the interface.
            old_graph = fixup.fixupQuanta(graph.to_old_quantum_graph())
            xgraph.update([(before.nodeId, after.nodeId) for before, after in old_graph.graph.edges])
    if not networkx.is_directed_acyclic_graph(xgraph):
        raise OptionsError(f"--graph-fixup {name!r} makes a dependency cycle.")
    return xgraph


@contextlib.contextmanager
def _keep_messages() -> Iterator[list[str]]:
    """Keep what the graph builder logs about an empty graph."""
    messages: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    keeper = Keeper(logging.ERROR)
    builder_logger = logging.getLogger("lsst.pipe.base")
    builder_logger.addHandler(keeper)
    try:
        yield messages
    finally:
        builder_logger.removeHandler(keeper)
