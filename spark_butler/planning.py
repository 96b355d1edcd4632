"""Build or open the predicted quantum graph of a run, and prepare its output collections.

Building writes nothing; `prepare_output` is the first to write.
"""

from __future__ import annotations

__all__ = ["RunRequest", "build_graph", "check_repository", "check_dataset_types", "prepare_output"]

import contextlib
import dataclasses
import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from lsst.ctrl.mpexec.cli import script
from lsst.ctrl.mpexec.cli.butler_factory import ButlerFactory
from lsst.ctrl.mpexec.showInfo import ShowInfo
from lsst.daf.butler import Butler, CollectionType, MissingCollectionError, MissingDatasetTypeError
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.resources import ResourcePath
from lsst.resources.s3utils import bucketExists

from .config import RunOptions
from .engine import find_temporary_types
from .errors import EmptyGraphError, OptionsError, RepositoryError, SparkButlerError, UserError

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class RunRequest:
    """What a user asks for, in the terms of ``pipetask run``."""

    arguments: Mapping[str, Any]
    """Values of the options of ``pipetask run``, by parameter name, as its script functions take them."""

    options: RunOptions
    """How the graph is to be executed."""

    show: ShowInfo = dataclasses.field(default_factory=lambda: ShowInfo([]))
    """What to print about pipeline and graph."""


def check_repository(butler_config: str) -> None:
    """Look whether a repository is there and its datastore answers.

    Parameters
    ----------
    butler_config
        Address or alias of the repository.

    Raises
    ------
    spark_butler.errors.RepositoryError
        Raised if not, with the reason.
    """
    try:
        with Butler.from_config(butler_config, writeable=False) as butler:
            roots = [root for root in butler.get_datastore_roots().values() if root is not None]
    except FileNotFoundError as exc:
        raise RepositoryError(f"There is no Butler repository at {butler_config!r}.") from exc
    except Exception as exc:  # many libraries may speak here
        raise RepositoryError(f"Can't open the Butler repository {butler_config!r}: {brief(exc)}") from exc
    for root in roots:
        _check_root(root)


def _check_root(root: ResourcePath) -> None:
    """Look whether the store of a datastore answers and lets us in."""
    if root.scheme != "s3":
        return
    endpoint = os.environ.get("S3_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL")
    where = f"The datastore {str(root)!r}"
    if endpoint and "@" not in root.netloc:
        parts = urlsplit(endpoint if "//" in endpoint else f"https://{endpoint}")
        address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        try:
            socket.create_connection(address, timeout=_CONNECT_SECONDS).close()
        except OSError as exc:
            raise RepositoryError(
                f"{where} can't be reached: nothing answers at {address[0]}:{address[1]} "
                f"(S3_ENDPOINT_URL): {exc.strerror or exc}."
            ) from exc
    try:
        client = root.client  # type: ignore[attr-defined]
        exists = bucketExists(root.netloc.rpartition("@")[2], client)
        root.join("butler.yaml").exists()
    except Exception as exc:  # botocore has hundreds
        raise RepositoryError(f"{where} can't be read: {brief(exc)}") from exc
    if not exists:
        raise RepositoryError(
            f"{where} can't be read: there is no such bucket, or the credentials don't open it."
        )


def build_graph(request: RunRequest) -> PredictedQuantumGraph:
    """Build the predicted quantum graph that a user asks for, or read it from a file.

    Parameters
    ----------
    request
        What the user asks for.

    Returns
    -------
    graph
        The graph, complete for execution, with at least one quantum.

    Raises
    ------
    spark_butler.errors.UserError
        Raised if the repository, collections, pipeline, tasks or query can't
        be used, or if the graph is empty; nothing was written.
    """
    arguments = dict(request.arguments)
    check_repository(str(arguments["butler_config"]))
    with contextlib.ExitStack() as stack:
        messages = stack.enter_context(_keep_messages())
        try:
            factory = script.build(**arguments, show=request.show)
            arguments["retained_dataset_types"] = stack.enter_context(
                _retained_file(request, factory, arguments)
            )
            graph = script.qgraph(factory, **arguments, show=request.show, for_execution=True)
        except SparkButlerError:
            raise
        except Exception as exc:
            # Nothing has been written, and what the middleware refuses is what it was given.
            logger.debug("Could not build the quantum graph.", exc_info=True)
            raise UserError(_refusal(exc, arguments)) from exc
    if graph is None:
        reason = " ".join(messages) or "every quantum that it selects has been done, or has no inputs."
        query = arguments.get("data_query")
        raise EmptyGraphError(f"The quantum graph is empty (data query {query!r}): {reason}")
    return graph


def _refusal(exc: Exception, arguments: Mapping[str, Any]) -> str:
    """Say in a line what the middleware can't use."""
    text = brief(exc)
    if isinstance(exc, FileNotFoundError):
        return f"File not found: {text}"
    if isinstance(exc, ImportError):
        return f"A task or pipeline can't be imported: {text}"
    return text


@contextlib.contextmanager
def _retained_file(request: RunRequest, factory: Any, arguments: Mapping[str, Any]) -> Iterator[str | None]:
    """Write the patterns of what is retained to a file, as the graph builder of pipetask wants them.

    The builder needs them to see which quanta have to run again because
    their temporaries are gone.
    """
    options = request.options
    nothing_temporary = options.retained_dataset_types is None and not options.temporary
    if factory is None or nothing_temporary or arguments.get("mock"):
        yield None
        return
    pipeline_graph = factory(resolve=False)
    with Butler.from_config(arguments["butler_config"], writeable=False) as butler:
        pipeline_graph.resolve(butler.registry)
    temporary = find_temporary_types(pipeline_graph, options)
    retained = sorted(set(pipeline_graph.dataset_types) - temporary.keys())
    with tempfile.TemporaryDirectory(prefix="spark-butler-") as directory:
        path = Path(directory, "retained.yaml")
        path.write_text(yaml.safe_dump(retained))
        yield str(path)


def check_dataset_types(butler: Butler, graph: PredictedQuantumGraph, *, register: bool) -> None:
    """Look whether the repository knows the outputs of a graph.

    Parameters
    ----------
    butler
        Butler of the repository.
    graph
        The graph.
    register
        Whether those that are missing will be registered.

    Raises
    ------
    spark_butler.errors.OptionsError
        Raised if dataset types are missing and won't be registered, or are
        defined in another way.
    """
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


def prepare_output(graph: PredictedQuantumGraph, arguments: Mapping[str, Any]) -> Butler:
    """Make the output collections, register dataset types, write init-outputs.

    Parameters
    ----------
    graph
        The graph.
    arguments
        Values of the options of ``pipetask run``, by parameter name.

    Returns
    -------
    butler
        Writeable butler with the output run as its default.

    Raises
    ------
    spark_butler.errors.OptionsError
        Raised if the output run exists and is not to be extended, or the other
        way about.
    """
    from_file = arguments.get("qgraph") is not None
    extend = bool(arguments["extend_run"])
    output = arguments.get("output")
    inputs: Sequence[str] = arguments.get("input") or ()
    output_run = arguments.get("output_run") or graph.header.output_run
    if output_run != graph.header.output_run:
        raise OptionsError(
            f"--output-run is {output_run!r}, but the quantum graph was made for "
            f"{graph.header.output_run!r}; see `pipetask update-graph-run`."
        )
    try:
        with Butler.from_config(arguments["butler_config"], writeable=False) as reader:
            check_dataset_types(reader, graph, register=bool(arguments["register_dataset_types"]))
        if from_file and output is None:
            butler = _make_graph_output(graph, arguments, extend=extend)
        else:
            butler = ButlerFactory.make_write_butler(
                arguments["butler_config"],
                graph.pipeline_graph,
                output=output,
                output_run=output_run,
                inputs=list(inputs),
                extend_run=extend,
                rebase=arguments["rebase"],
                replace_run=arguments["replace_run"],
                prune_replaced=arguments["prune_replaced"],
            )
    except ValueError as exc:
        if isinstance(exc, UserError):
            raise
        raise OptionsError(brief(exc)) from exc
    packages = not arguments["no_versions"]
    if arguments["register_dataset_types"]:
        graph.pipeline_graph.register_dataset_types(butler, include_packages=packages)
    if not arguments["skip_init_writes"]:
        skip_existing = extend or bool(arguments["skip_existing"])
        graph.write_init_outputs(butler, skip_existing=skip_existing)
        graph.write_configs(butler, compare_existing=extend)
        if packages:
            graph.write_packages(butler, compare_existing=extend)
    return butler


def _make_graph_output(graph: PredictedQuantumGraph, arguments: Mapping[str, Any], *, extend: bool) -> Butler:
    """Make the collections that a graph from a file was made for."""
    header = graph.header
    butler = Butler.from_config(arguments["butler_config"], writeable=True)
    exists = _has(butler, header.output_run)
    if exists and not extend:
        raise OptionsError(
            f"Output run {header.output_run!r} already exists, but --extend-run was not given."
        )
    if extend and not exists:
        raise OptionsError(f"Cannot --extend-run; output collection {header.output_run!r} does not exist.")
    butler.collections.register(header.output_run, CollectionType.RUN)
    if header.output is not None:
        if butler.collections.register(header.output, CollectionType.CHAINED) and header.inputs:
            butler.collections.extend_chain(
                header.output, butler.collections.query(header.inputs, flatten_chains=True)
            )
        if header.output_run not in butler.collections.get_info(header.output).children:
            butler.collections.prepend_chain(header.output, header.output_run)
    return butler


def _has(butler: Butler, collection: str) -> bool:
    try:
        butler.collections.get_info(collection)
    except MissingCollectionError:
        return False
    return True


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


def brief(exc: BaseException) -> str:
    """Shorten an error to one line.

    Parameters
    ----------
    exc
        The error.
    """
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    text = " ".join(lines[:3]) if lines else type(exc).__name__
    return text if len(text) <= 500 else f"{text[:497]}..."
