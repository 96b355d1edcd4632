"""Checks of the output collections of a run, and their registration.

Runs in the driver.  Only `prepare_output` changes the repository.
"""

from __future__ import annotations

__all__ = ["OutputRequest", "check_output", "find_packages", "prepare_output", "resolve_output"]

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from lsst.ctrl.mpexec.cli.butler_factory import ButlerFactory
from lsst.daf.butler import Butler, CollectionType
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.utils.packages import Packages

from ..errors import OptionsError, RepositoryError, UserError
from ..run_folders import run_folder
from ..text import brief, translate_errors
from .checks import check_writeable, register_run, store_roots
from .database_retry import is_connection_loss, retry_database
from .output_checks import check_configs, check_dataset_types, check_name, check_tasks
from .unknown_names import has_collection

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class OutputRequest:
    """Output collections of a run, and which other outputs than those of quanta to write."""

    butler_config: str
    collections: Mapping[str, Any]
    """Arguments of `ButlerFactory`: names of collections, and whether to extend, replace or rebase them."""

    from_file: bool
    register_dataset_types: bool
    write_init_outputs: bool
    """Whether to write init-outputs, configurations and package versions."""

    skip_existing: bool
    """Whether to keep init-outputs that exist, instead of writing them."""

    write_packages: bool
    update_chain: bool = False
    """Whether the output chain is the one that a graph from a file names."""

    def with_inputs(self, tag: str | None) -> OutputRequest:
        """Return a copy of this request whose inputs are a new collection, or no collection."""
        inputs = [] if tag is None else [tag]
        return dataclasses.replace(self, collections={**self.collections, "inputs": inputs})

    @property
    def extend(self) -> bool:
        """Whether the run extends an output run that exists."""
        return bool(self.collections["extend_run"])


def resolve_output(graph: PredictedQuantumGraph, request: OutputRequest) -> OutputRequest:
    """Return a request in which the graph names the collections that the options leave out.

    Raises `OptionsError` if they name another output run than the graph.
    """
    header, collections = graph.header, {**request.collections, "output_run": graph.header.output_run}
    check_name("The output run of the quantum graph", header.output_run)
    if (run := request.collections["output_run"]) not in (None, header.output_run):
        raise OptionsError(
            f"--output-run is {run!r}, but the quantum graph was made for {header.output_run!r}; "
            "see `pipetask update-graph-run`."
        )
    if not request.from_file or collections["output"] is not None or header.output is None:
        return dataclasses.replace(request, collections=collections)
    collections["output"] = header.output
    with Butler.from_config(request.butler_config, writeable=False) as butler:
        exists = has_collection(butler, header.output)
    if not collections["inputs"] and not exists:
        collections["inputs"] = [name for name in header.inputs if name != header.output]
    return dataclasses.replace(request, collections=collections, update_chain=True)


def check_output(
    graph: PredictedQuantumGraph,
    request: OutputRequest,
    *,
    probe_datastore: bool,
    source: str | None,
) -> None:
    """Check everything that could prevent the execution of a graph; write nothing that stays.

    Parameters
    ----------
    probe_datastore
        Whether to write an object to the datastore and remove it again.
    source
        Address or alias of the repository of the inputs, if it is not the one that the run writes to.

    Raises
    ------
    spark_butler.errors.UserError
        Raised if the output run exists and must not be extended, or must be extended and does not exist; if
        its name can't name a folder; if dataset types are missing and must not be registered, or have other
        definitions; if a run to extend has other configurations; if a task can't be constructed; or if the
        repository can't be written to.
    """
    with _translate_errors("The output collections can't be used"):
        butler, _, _ = ButlerFactory.make_butler_and_collections(request.butler_config, **request.collections)
    with butler:
        for root in store_roots(butler):
            run_folder(root, graph.header.output_run)
        check_dataset_types(butler, graph, register=request.register_dataset_types)
        if request.write_init_outputs:
            if request.extend and request.from_file:
                check_configs(butler, graph.pipeline_graph, graph.header.output_run)
            if source is None:
                check_tasks(butler, graph)
            else:
                with Butler.from_config(source, writeable=False) as inputs:
                    check_tasks(inputs, graph)
        if probe_datastore:
            check_writeable(store_roots(butler))


def find_packages(request: OutputRequest) -> Packages | None:
    """Find the versions of all packages, which takes half a second.

    It is `None` if the request doesn't write them, or extends a run that may have versions already.
    """
    wanted = request.write_init_outputs and request.write_packages and not request.extend
    return Packages.fromSystem() if wanted else None


def prepare_output(graph: PredictedQuantumGraph, request: OutputRequest, packages: Packages | None) -> Butler:
    """Register the output collections and dataset types, and write init-outputs.

    Returns a writeable butler with the output run as its default.  ``request`` was accepted by
    `check_output`.
    """
    what = "The output run can't be prepared"
    attempts = itertools.count()
    # Pruning removes datasets outside of any transaction, so it is not repeated.
    is_repeatable = not request.collections["prune_replaced"]

    def prepare() -> Butler:
        again = next(attempts) > 0
        return _prepare_output(graph, _resume(request) if again else request, None if again else packages)

    with _translate_errors(what):
        return retry_database(
            what, prepare, is_transient=lambda exc: is_repeatable and is_connection_loss(exc)
        )


def _prepare_output(
    graph: PredictedQuantumGraph, request: OutputRequest, packages: Packages | None
) -> Butler:
    butler = ButlerFactory.make_write_butler(
        request.butler_config, graph.pipeline_graph, **_register_collections(request)
    )
    try:
        _fill(butler, graph, request, packages)
    except BaseException:
        butler.close()
        raise
    return butler


def _resume(request: OutputRequest) -> OutputRequest:
    """Return a request that accepts what an earlier attempt wrote before it lost its connection."""
    with Butler.from_config(request.butler_config, writeable=False) as butler:
        exists = has_collection(butler, request.collections["output_run"])
    collections = {**request.collections, "extend_run": exists}
    if exists:
        collections["replace_run"] = False
    return dataclasses.replace(request, collections=collections, skip_existing=True)


def _register_collections(request: OutputRequest) -> Mapping[str, Any]:
    """Register new output collections in one transaction, so that a killed driver leaves all or none.

    `ButlerFactory` registers the run first and then the chain.  If the driver is killed in between, a later
    attempt treats the empty chain as a chain with other inputs.
    """
    collections = request.collections
    if request.extend or collections["prune_replaced"]:
        return collections
    names = {name: collections[name] for name in ("output", "output_run", "inputs", "rebase")}
    replace = collections["replace_run"]
    with Butler.from_config(request.butler_config, writeable=True) as butler:
        factory = ButlerFactory(butler, **names, writeable=True)
        factory.check(extend_run=False, replace_run=replace)
        with butler.transaction():
            butler.collections.register(collections["output_run"], CollectionType.RUN)
            if factory.output is not None:
                inputs = factory.output.chain if factory.output.exists else factory.inputs
                children = list(butler.collections.query(inputs, flatten_chains=True)) if inputs else []
                butler.collections.register(factory.output.name, CollectionType.CHAINED)
                members = [collections["output_run"], *children[int(replace) :]]
                butler.collections.redefine_chain(factory.output.name, members)
    return {**collections, "extend_run": True, "replace_run": False}


def _fill(
    butler: Butler, graph: PredictedQuantumGraph, request: OutputRequest, packages: Packages | None
) -> None:
    """Register dataset types; write init-outputs, configurations and package versions."""
    output, output_run = request.collections["output"], request.collections["output_run"]
    if request.extend:
        register_run(butler, output_run)
    if request.update_chain and output_run not in butler.collections.get_info(output).children:
        butler.collections.prepend_chain(output, output_run)
    if request.register_dataset_types:
        graph.pipeline_graph.register_dataset_types(butler, include_packages=request.write_packages)
    if request.write_init_outputs:
        graph.write_init_outputs(butler, skip_existing=request.skip_existing)
        graph.write_configs(butler, compare_existing=request.extend)
        if packages is not None:
            # `write_packages` does the same if the run has no versions yet.
            (ref,) = graph.get_init_outputs("").values()
            butler.put(packages, ref)
        elif request.write_packages:
            graph.write_packages(butler, compare_existing=request.extend)


@contextlib.contextmanager
def _translate_errors(what: str) -> Iterator[None]:
    """Translate errors of the middleware about unusable arguments into a `UserError`."""
    with translate_errors(RepositoryError, what):
        try:
            yield
        except UserError:
            raise
        except (ValueError, TypeError, LookupError) as exc:
            logger.debug("%s.", what, exc_info=True)
            raise OptionsError(brief(exc)) from exc
