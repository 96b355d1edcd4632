"""Build or open the predicted quantum graph of a run.  Nothing here writes to the repository."""

from __future__ import annotations

__all__ = ["RunRequest", "apply_fixup", "build_graph", "show_pipeline"]

import contextlib
import dataclasses
import logging
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import networkx
import yaml
from lsst.ctrl.mpexec.cli import script
from lsst.ctrl.mpexec.cli.script.run import _import_graph_fixup
from lsst.ctrl.mpexec.showInfo import ShowInfo
from lsst.daf.butler import Butler, InvalidQueryError
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_graph_builder import OutputExistsError
from lsst.resources import ResourcePath

from .config import RunOptions
from .engine import find_temporary_types
from .errors import EmptyGraphError, OptionsError, UserError
from .messages import brief

logger = logging.getLogger(__name__)

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
        arguments["retained_dataset_types"] = stack.enter_context(_retained_file(request, factory))
        try:
            graph = script.qgraph(factory, **arguments, show=request.show, for_execution=True)
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
    reason = " ".join(line.strip() for message in messages for line in message.splitlines())
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


@contextlib.contextmanager
def _retained_file(request: RunRequest, factory: Any) -> Iterator[str | None]:
    """Write the patterns of what is retained to a file, as the graph builder of pipetask wants them.

    The builder needs them to see which quanta have to run again because
    their temporaries are gone.
    """
    options = request.options
    if factory is None or (options.retained_dataset_types is None and not options.temporary):
        yield None
        return
    pipeline_graph = _resolve(request, factory)
    temporary = find_temporary_types(pipeline_graph, options)
    if not (request.arguments["skip_existing"] or request.arguments["skip_existing_in"]):
        # The builder refuses it where nothing is skipped.
        yield None
        return
    retained = sorted(set(pipeline_graph.dataset_types) - temporary.keys())
    with tempfile.TemporaryDirectory(prefix="spark-butler-") as directory:
        path = Path(directory, "retained.yaml")
        path.write_text(yaml.safe_dump(retained))
        yield str(path)


def _resolve(request: RunRequest, factory: Any) -> PipelineGraph:
    """Make the pipeline graph that the builder will make, to know its dataset types."""
    pipeline_graph: PipelineGraph = factory(resolve=False).copy()
    if request.arguments["mock"]:
        from lsst.pipe.base.tests.mocks import mock_pipeline_graph

        pipeline_graph = mock_pipeline_graph(
            pipeline_graph, unmocked_dataset_types=request.arguments["unmocked_dataset_types"] or ()
        )
    with Butler.from_config(request.arguments["butler_config"], writeable=False) as butler:
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
