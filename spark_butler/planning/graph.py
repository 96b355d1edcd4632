"""Build or open the predicted quantum graph of a run.  Nothing here writes to the repository."""

from __future__ import annotations

__all__ = ["RunRequest", "apply_fixup", "build_graph", "read_task_modules", "show_pipeline", "task_modules"]

import contextlib
import dataclasses
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import networkx
from astropy.table import Table
from lsst.ctrl.mpexec.cli import script
from lsst.ctrl.mpexec.cli.butler_factory import ButlerFactory
from lsst.ctrl.mpexec.cli.script.run import _import_graph_fixup
from lsst.ctrl.mpexec.cli.utils import summarize_quantum_graph
from lsst.ctrl.mpexec.showInfo import ShowInfo
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
from ..errors import EmptyGraphError, OptionsError, UserError
from ..model.options import RunOptions
from ..repository.collection_notes import read_temporaries
from ..temporaries.dataset_types import find_temporary_types
from ..text import brief
from .dataset_ids import check_outputs_in_the_way, read_retained, retained_types, settle_dataset_ids

logger = logging.getLogger(__name__)

# With it the graph builder begins some lines of Python.
_RECIPE = "To reproduce this query"

_NO_OUTPUT: dict[str, Any] = {
    "input": (),
    "output": None,
    "output_run": None,
    "extend_run": False,
    "rebase": False,
    "replace_run": False,
    "prune_replaced": None,
}


@dataclasses.dataclass(frozen=True)
class RunRequest:
    """What a user asks for, in the terms of ``pipetask run``."""

    arguments: Mapping[str, Any]
    """Values of the options of ``pipetask run``, by parameter name, as its script functions take them."""

    options: RunOptions
    """How the graph is to be executed."""

    show: ShowInfo = dataclasses.field(default_factory=lambda: ShowInfo([]))
    """What to print about pipeline and graph."""

    provenance_graph: str | None = None
    """Where to write the provenance quantum graph."""

    command: Sequence[str] = ()
    """The same as a command line; empty where none can say it, as for a pipeline in a notebook."""

    @property
    def graph_file(self) -> str | None:
        """File to read the graph from."""
        file: str | None = self.arguments.get("qgraph")
        return file


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
    arguments = dict(request.arguments)
    shows_graph = not {"pipeline-graph", "task-graph", "inputs"}.isdisjoint(request.show.commands)
    if not (shows_graph or arguments["pipeline_dot"] or arguments["pipeline_mermaid"]):
        # Opened for nothing, otherwise.
        del arguments["butler_config"]
    with _refusing("The pipeline can't be built"):
        try:
            factory = script.build(**arguments, show=request.show)
        except KeyError as exc:
            deleted = {action.label for action in arguments["pipeline_actions"]}
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
    arguments = dict(request.arguments)
    what = "The quantum graph can't be built"
    if (file := request.graph_file) is not None:
        _check_graph_file(file)
        # The graph knows its collections; see `OutputRequest.from_arguments`.
        arguments.update(_NO_OUTPUT)
        what = f"The quantum graph can't be read from {file!r}"
    with contextlib.ExitStack() as stack:
        messages = stack.enter_context(_keep_messages())
        stack.enter_context(_refusing(what))
        try:
            if request.graph_file is not None:
                graph = script.qgraph(None, **arguments, show=request.show, for_execution=True)
            else:
                graph = _build(request, factory)
        except InvalidQueryError as exc:
            query = arguments["data_query"]
            raise OptionsError(f"The data query {query!r} can't be used: {brief(exc)}") from exc
        except OutputExistsError as exc:
            raise OptionsError(
                "Outputs of earlier attempts are in the way; give --clobber-outputs to replace them: "
                f"{brief(exc)}"
            ) from exc
    if graph is None:
        raise EmptyGraphError(_empty_text(request, messages))
    return graph


def _empty_text(request: RunRequest, messages: list[str]) -> str:
    """Say why a graph is empty."""
    if request.graph_file is not None:
        return f"The quantum graph in {request.graph_file!r} is empty."
    # The recipe was logged, and is nothing for one line.
    reasons = [message.partition(_RECIPE)[0] for message in messages]
    reason = " ".join(line.strip() for reason in reasons for line in reason.splitlines())
    if not reason:
        done = request.arguments["skip_existing"] or request.arguments["skip_existing_in"]
        reason = "all quanta that it selects " + ("have been done." if done else "lack inputs.")
    query = request.arguments.get("data_query")
    return f"The quantum graph is empty (data query {query!r}): {reason}"


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
    arguments = request.arguments
    pipeline_graph = _resolve(request, factory)
    temporary = find_temporary_types(pipeline_graph, request.options)
    retained = read_retained(arguments)
    butler, collections, run = ButlerFactory.make_butler_and_collections(
        arguments["butler_config"],
        output=arguments["output"],
        output_run=arguments["output_run"],
        inputs=list(arguments["input"] or ()),
        **{name: arguments[name] for name in ("extend_run", "rebase", "replace_run", "prune_replaced")},
    )
    with butler:
        skip_existing_in = tuple(arguments["skip_existing_in"] or ())
        if arguments["skip_existing"] and run is not None:
            skip_existing_in += (run,)
        existing: frozenset[uuid.UUID] = frozenset()
        if run is not None and arguments["extend_run"]:
            existing = fetch_run_ids(butler, run)
            if read_temporaries(butler, [run]) - temporary.keys():
                # Only the engine can see which quanta have to make again what is to be kept now.
                skip_existing_in = tuple(name for name in _flatten(butler, skip_existing_in) if name != run)
        absent = temporary.keys() | read_temporaries(butler, _flatten(butler, skip_existing_in))
        builder = AllDimensionsQuantumGraphBuilder(
            pipeline_graph,
            butler,
            where=arguments["data_query"] or "",
            skip_existing_in=skip_existing_in,
            # The builder refuses them where nothing is skipped.
            retained_dataset_types=(
                retained_types(pipeline_graph, retained, absent) if skip_existing_in else None
            ),
            prune_unanchored_quanta=arguments["prune_unanchored_quanta"],
            # What is in the way of quanta that succeeded, and run for a temporary only, is no reason to stop.
            clobber=True,
            dataset_query_constraint=DatasetQueryConstraintVariant.fromExpression(
                arguments["dataset_query_constraint"]
            ),
            input_collections=collections,
            output_run=run,
            data_id_tables=[_read_table(file) for file in arguments["data_id_table"]],
        )
        metadata = {
            "butler_argument": str(arguments["butler_config"]),
            "extend_run": arguments["extend_run"],
            "skip_existing_in": skip_existing_in,
            "skip_existing": arguments["skip_existing"],
            "retained_dataset_types": arguments["retained_dataset_types"],
            "data_query": arguments["data_query"],
        }
        components = builder.finish(
            arguments["output"],
            metadata=metadata,
            attach_datastore_records=arguments["qgraph_datastore_records"],
        )
    if existing and not arguments["clobber_outputs"]:
        check_outputs_in_the_way(components, existing)
    settle_dataset_ids(components, keep=existing)
    if file := arguments["save_qgraph"]:
        components.write(file)
    graph = components.assemble()
    if not summarize_quantum_graph(graph):
        return None
    if file := arguments["qgraph_dot"]:
        graph2dot(graph, file)
    if file := arguments["qgraph_mermaid"]:
        graph2mermaid(graph, file)
    request.show.show_graph_info(graph, arguments["butler_config"])
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
    """Make the pipeline graph, with its dataset types."""
    arguments = request.arguments
    pipeline_graph: PipelineGraph = factory(resolve=False).copy()
    if arguments["mock"]:
        from lsst.pipe.base.tests.mocks import mock_pipeline_graph

        pipeline_graph = mock_pipeline_graph(
            pipeline_graph,
            unmocked_dataset_types=arguments["unmocked_dataset_types"] or (),
            force_failures=arguments["mock_failure"],
        )
    with Butler.from_config(arguments["butler_config"], writeable=False) as butler:
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
        fixup = _import_graph_fixup(name)
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
