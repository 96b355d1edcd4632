"""Predicted quantum graph, built or read from a file.  Runs in the driver; writes to no repository."""

from __future__ import annotations

__all__ = [
    "apply_fixup",
    "build_graph",
    "check_graph_file",
    "read_task_modules",
    "show_pipeline",
    "task_modules",
]

import contextlib
import logging
import logging.handlers
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import networkx
import yaml
from lsst.ctrl.mpexec.cli import script
from lsst.pipe.base.pipeline_graph import PipelineGraph, TaskImportMode
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_graph_builder import OutputExistsError, QuantumGraphBuilderError
from lsst.resources import ResourcePath

from .._pipe_base import import_graph_fixup
from ..errors import EmptyGraphError, NothingToDo, OptionsError, UserError
from ..text import brief
from .builder import build_predicted_graph
from .request import RunRequest
from .unknown_names import hint_at_pipeline

logger = logging.getLogger(__name__)

# The graph builder begins some lines of Python with these words.
_RECIPE = "To reproduce this query"
_MOST_ERRORS = 1000


def show_pipeline(request: RunRequest) -> Any:
    """Build the pipeline and print the parts of it that ``--show`` names.

    Returns the factory of the pipeline graph, for `build_graph`; `None` when the graph comes from a file.
    """
    if request.graph_file is not None:
        return None
    arguments = request.pipetask_arguments()
    arguments["butler_config"] = request.source_repo
    shows_graph = not {"pipeline-graph", "task-graph", "inputs"}.isdisjoint(request.show.commands)
    if not (shows_graph or request.pipeline_dot or request.pipeline_mermaid):
        # Without these options, no repository needs to be opened.
        del arguments["butler_config"]
    with _translate_errors("The pipeline can't be built", lambda: hint_at_pipeline(request)):
        try:
            factory = script.build(**arguments, show=request.show)
        except KeyError as exc:
            if exc.args and exc.args[0] in {action.label for action in request.pipeline_actions}:
                raise LookupError(f"--delete: there is no task {exc.args[0]!r}") from exc
            raise
        if not request.show.handled:
            factory(resolve=False)
        return factory


def task_modules(pipeline_graph: PipelineGraph) -> list[str]:
    """Return the modules of the tasks of a pipeline, whose dataset types need not be resolved."""
    return sorted({node.task_class_name.rpartition(".")[0] for node in pipeline_graph.tasks.values()})


def read_task_modules(file: str) -> list[str]:
    """Return the modules of the tasks of a graph in a file, without reading its quanta.

    None if the file can't be read (`build_graph` reports the reason), or if its older format can only be read
    as a whole.
    """
    check_graph_file(file)
    uri = ResourcePath(file)
    if uri.getExtension() != ".qg":
        return []
    try:
        with PredictedQuantumGraph.open(uri, import_mode=TaskImportMode.DO_NOT_IMPORT) as reader:
            return task_modules(reader.pipeline_graph)
    except Exception:  # a broken file raises errors of many types
        logger.debug("The pipeline of %s can't be read.", file, exc_info=True)
        return []


def build_graph(request: RunRequest, factory: Any) -> PredictedQuantumGraph:
    """Build the predicted quantum graph of a request, or read it from a file; it has at least one quantum.

    Parameters
    ----------
    factory
        The result of `show_pipeline`.

    Raises
    ------
    spark_butler.errors.UserError
        Raised if the collections, pipeline, tasks, query or file can't be used, or if the graph is empty.
    """
    what = "The quantum graph can't be built"
    if (file := request.graph_file) is not None:
        check_graph_file(file)
        what = f"The quantum graph can't be read from {file!r}"
        logger.info("Reading %s, which executes the task configurations in it.", file)
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(_keep_errors())
        stack.enter_context(_translate_errors(what))
        try:
            if request.graph_file is not None:
                arguments = request.pipetask_arguments()
                # A graph from a file knows its collections; see `spark_butler.repository.output_run`.
                arguments |= dict.fromkeys(request.output_collections())
                arguments |= {"input": (), "retained_dataset_types": None}
                graph = script.qgraph(None, **arguments, show=request.show, for_execution=True)
            else:
                graph = build_predicted_graph(request, factory)
        except OutputExistsError as exc:
            raise OptionsError(
                "Outputs of earlier attempts exist already; give --clobber-outputs to replace them: "
                f"{brief(exc)}"
            ) from exc
    if graph is None:
        raise _empty_graph(request, errors)
    return graph


def _empty_graph(request: RunRequest, errors: list[logging.LogRecord]) -> EmptyGraphError:
    """Return the error for an empty graph, with the reasons that the builder logged."""
    if request.graph_file is not None:
        return EmptyGraphError(f"The quantum graph in {request.graph_file!r} is empty.")
    # The recipe was logged, and is too long for one line.
    reasons = [error.getMessage().partition(_RECIPE)[0] for error in errors]
    reason = " ".join(line.strip() for reason in reasons for line in reason.splitlines())
    query = f" (data query {request.where!r})" if request.where else ""
    if not reason and (request.skip_existing or request.skip_existing_in):
        return NothingToDo(f"Nothing left to do: all selected quanta have been done before{query}.")
    reason = reason or "all quanta that it selects lack inputs."
    inputs = f" --collections {','.join(request.inputs)}" if request.inputs else ""
    return EmptyGraphError(
        f"The quantum graph is empty{query}: {reason.rstrip('.')}; "
        f"`butler query-datasets {request.source_repo}{inputs}` lists the inputs that exist."
    )


def check_graph_file(file: str) -> None:
    """Check that a file exists and has the extension of a graph."""
    uri = ResourcePath(file)
    if uri.getExtension() not in (".qg", ".qgraph"):
        raise OptionsError(f"--qgraph is {file!r}; expected a file with the extension .qg or .qgraph.")
    if not uri.exists():
        raise OptionsError(f"--qgraph {file!r} does not exist.")


@contextlib.contextmanager
def _translate_errors(what: str, hint: Callable[[], str] = str) -> Iterator[None]:
    """Translate any error of the middleware, which rejects the user's input, into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as exc:
        logger.debug("%s.", what, exc_info=True)
        text = f"{what}: {_reason(exc)}"
        raise UserError(f"{text.rstrip('.')}; {remedy}" if (remedy := hint()) else text) from exc


def _reason(exc: Exception) -> str:
    """Return the reason of an error of the middleware in one line."""
    if isinstance(exc, yaml.MarkedYAMLError) and (mark := exc.problem_mark) is not None:
        return (
            f"{mark.name} is not YAML: line {mark.line + 1}, column {mark.column + 1}: {exc.problem}; "
            "correct the file there."
        )
    text = brief(exc)
    if exc.__cause__ is not None and (cause := brief(exc.__cause__)) not in text:
        text = f"{text.rstrip('.')}: {cause}"
    if isinstance(exc, FileNotFoundError):
        return f"file not found: {text}"
    if isinstance(exc, ImportError):
        return f"a task can't be imported: {text}"
    if isinstance(exc, ValueError | TypeError | RuntimeError | AttributeError | QuantumGraphBuilderError):
        return text
    if type(exc) is LookupError:
        return text
    return f"{type(exc).__name__}: {text}"


def apply_fixup(graph: PredictedQuantumGraph, name: str | None) -> networkx.DiGraph[uuid.UUID]:
    """Return the quanta of a graph with the edges that a graph fixup adds.

    ``name`` is that of a class or factory of `lsst.pipe.base.execution_graph_fixup.ExecutionGraphFixup`.
    """
    xgraph = graph.quantum_only_xgraph.copy()
    if not name:
        return xgraph
    with _translate_errors(f"--graph-fixup {name!r} can't be used"):
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
def _keep_errors() -> Iterator[list[logging.LogRecord]]:
    """Record the errors that the graph builder logs about an empty graph."""
    keeper = logging.handlers.BufferingHandler(_MOST_ERRORS)
    keeper.setLevel(logging.ERROR)
    builder_logger = logging.getLogger("lsst.pipe.base")
    builder_logger.addHandler(keeper)
    try:
        yield keeper.buffer
    finally:
        builder_logger.removeHandler(keeper)
