"""Checks of inputs in another, read-only repository, and their registration in the user's repository.

Runs in the driver.  `spark_butler.driver.input_transfer` copies the files.
"""

from __future__ import annotations

__all__ = [
    "check_inputs",
    "find_input_collection",
    "find_inputs",
    "find_places",
    "find_registered",
    "input_collection",
    "open_input_repository",
    "register_inputs",
    "tag_inputs",
]

import itertools
import logging
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from lsst.daf.butler import (
    Butler,
    CollectionType,
    DataCoordinate,
    DatasetRef,
    DimensionRecord,
    MissingDatasetTypeError,
)
from lsst.daf.butler.direct_butler import DirectButler
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from .._pipe_base import init_quanta
from ..errors import OptionsError, RepositoryError
from ..model.work import all_inputs, all_outputs
from ..text import best_effort, brief, format_data_id
from .checks import store_roots
from .unknown_names import check_collections, has_collection

logger = logging.getLogger(__name__)

_REMEDIES = {
    "no access credentials": "Put your token for the server into BUTLER_RUBIN_ACCESS_TOKEN.",
    "401": "Check the token in BUTLER_RUBIN_ACCESS_TOKEN.",
    "403": "Check the token in BUTLER_RUBIN_ACCESS_TOKEN.",
    "httpx2": "Run `pip install 'spark-butler[remote]'`.",
}


def open_input_repository(repo: str, own: str, collections: Sequence[str] = ()) -> Butler:
    """Open a repository to read inputs from it; ``own`` is the one that the run writes to.

    Raises
    ------
    spark_butler.errors.UserError
        Raised if it can't be read, lacks one of ``collections``, or is the one that the run writes to.
    """
    try:
        butler = Butler.from_config(repo, writeable=False)
    except FileNotFoundError as exc:
        raise RepositoryError(
            f"There is no Butler repository at {repo!r}, nor an alias of that name; correct --input-repo."
        ) from exc
    except Exception as exc:  # the errors of several libraries
        raise _read_error(repo, exc) from exc
    try:
        with Butler.from_config(own, writeable=False) as target:
            shared = set(find_places(butler)).intersection(find_places(target))
        if shared:
            raise OptionsError(
                f"--input-repo {repo!r} keeps its files in {sorted(shared)[0]}, as {own!r} does, which the "
                "run writes to; leave --input-repo out to run there."
            )
        check_collections(butler, collections)
    except BaseException as exc:
        butler.close()
        if isinstance(exc, OptionsError | RepositoryError) or not isinstance(exc, Exception):
            raise
        raise _read_error(repo, exc) from exc
    return butler


def find_places(butler: Butler) -> list[str]:
    """Return the roots of a repository's datastores; none for a Butler server, which does not give them."""
    return [str(root) for root in store_roots(butler)] if isinstance(butler, DirectButler) else []


def _read_error(repo: str, exc: Exception) -> RepositoryError:
    """Build the error for a repository of inputs that can't be read."""
    reasons = [brief(exc)]
    cause = exc.__cause__ or exc.__context__
    if cause is not None and brief(cause) not in reasons[0]:
        reasons.append(brief(cause))
    text = ": ".join(reason.rstrip(".") for reason in reasons)
    remedy = next((remedy for sign, remedy in _REMEDIES.items() if sign in text), "")
    return RepositoryError(f"Can't read the repository of the inputs, {repo!r}: {text}. {remedy}".rstrip())


def input_collection(output: str | None) -> str | None:
    """Return the TAGGED collection for the inputs of an output chain, as pipe_base names it."""
    return None if output is None else f"{output}/inputs"


def find_input_collection(repo: str, output: str | None, *, rebase: bool = False) -> tuple[str, ...]:
    """Return the collection for the inputs of an output chain, if a repository has it already.

    Raises
    ------
    spark_butler.errors.OptionsError
        Raised if the chain exists and has other inputs, unless ``rebase``.
    """
    if output is None or (tag := input_collection(output)) is None:
        return ()
    with Butler.from_config(repo, writeable=False) as butler:
        if has_collection(butler, output) and not rebase:
            children = butler.collections.get_info(output).children
            if children and tag not in children:
                raise OptionsError(
                    f"--output {output!r} exists and has inputs from its own repository; choose another "
                    "output, or add --rebase."
                )
        return (tag,) if has_collection(butler, tag) else ()


def find_inputs(graph: PredictedQuantumGraph) -> tuple[dict[uuid.UUID, DatasetRef], frozenset[uuid.UUID]]:
    """Return the datasets that a graph reads and does not produce, and which of them are init-inputs.

    The datasets have the dataset types of the repository.  Tasks need init-inputs before any quantum runs.
    """
    quanta = graph.build_execution_quanta().values()
    made = {ref.id for quantum in quanta for ref in all_outputs(quantum)}
    labels = [label for label in graph.pipeline_graph.tasks if label in init_quanta(graph)]
    made |= {ref.id for label in labels for ref in graph.get_init_outputs(label).values()}
    nodes = graph.pipeline_graph.dataset_types
    of_tasks = [ref for label in labels for ref in graph.get_init_inputs(label).values()]
    inputs: dict[uuid.UUID, DatasetRef] = {}
    for ref in itertools.chain(of_tasks, (ref for quantum in quanta for ref in all_inputs(quantum))):
        if ref.id not in made and ref.id not in inputs:
            whole = ref.makeCompositeRef() if ref.isComponent() else ref
            inputs[ref.id] = nodes[whole.datasetType.name].generalize_ref(whole)
    return inputs, frozenset(ref.id for ref in of_tasks if ref.id in inputs)


def find_registered(butler: Butler, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, DatasetRef]:
    """Return the datasets with the given IDs that are registered in a repository."""
    return {ref.id: ref for ref in butler.get_many_datasets(ids)}


def check_inputs(
    butler: Butler, graph: PredictedQuantumGraph, inputs: Mapping[uuid.UUID, DatasetRef]
) -> list[DatasetRef]:
    """Check that the inputs of a graph can be registered in a repository without a change.

    Returns the inputs that the run's own repository has already.

    Raises
    ------
    spark_butler.errors.RepositoryError
        Raised if the repository defines dimensions, dataset types or collections differently, has different
        dimension records, or has another dataset with the run, dataset type and data ID of an input.
    """
    _check_universe(butler, graph.pipeline_graph)
    _check_dataset_types(butler, inputs.values())
    _check_records(butler, graph)
    registered = find_registered(butler, inputs)
    for dataset_id, ref in registered.items():
        wanted = inputs[dataset_id]
        if _place(ref) != _place(wanted):
            raise RepositoryError(
                f"The repository has a dataset with the ID {dataset_id} of an input, but it is "
                f"{_describe(ref)}, not {_describe(wanted)}; use another repository."
            )
    _check_places(butler, [ref for dataset_id, ref in inputs.items() if dataset_id not in registered])
    return list(registered.values())


def _check_universe(butler: Butler, pipeline_graph: PipelineGraph) -> None:
    wanted, own = pipeline_graph.universe, butler.dimensions
    if wanted != own:
        config = f"resource://lsst.daf.butler/configs/old_dimensions/{wanted.namespace}_universe"
        raise RepositoryError(
            f"The repository has version {own.version} of the dimensions {own.namespace!r}, and the inputs "
            f"have version {wanted.version} of {wanted.namespace!r}; create a repository with `butler create "
            f"--dimension-config {config}{wanted.version}.yaml`."
        )


def _check_dataset_types(butler: Butler, refs: Iterable[DatasetRef]) -> None:
    for dataset_type in {ref.datasetType for ref in refs}:
        try:
            known = butler.get_dataset_type(dataset_type.name)
        except MissingDatasetTypeError:
            continue
        # As `Butler.transfer_from` requires it.
        if not (known.is_compatible_with(dataset_type) and dataset_type.is_compatible_with(known)):
            raise RepositoryError(
                f"Dataset type {dataset_type.name!r} differs between the two repositories: it is {known} in "
                f"the run's, and {dataset_type} in the inputs'; write to another repository."
            )


def _check_records(butler: Butler, graph: PredictedQuantumGraph) -> None:
    """Check that records of dimensions that both repositories have are equal."""
    for records in _dimension_records(graph):
        by_id = {record.dataId: record for record in records}
        with butler.query() as query:
            element = records[0].definition
            found = list(query.join_data_coordinates(by_id).dimension_records(element.name))
        for own in found:
            wanted = by_id.get(own.dataId)
            if wanted is None or own == wanted:
                continue
            differing = [name for name in own.__slots__ if getattr(own, name) != getattr(wanted, name)]
            name = differing[0]
            raise RepositoryError(
                f"The {element.name} with {format_data_id(own.dataId.required)} differs between the two "
                f"repositories: its {name} is {getattr(own, name)!r} in the run's, and "
                f"{getattr(wanted, name)!r} in the inputs'; write to another repository."
            )


def _dimension_records(graph: PredictedQuantumGraph) -> Iterator[list[DimensionRecord]]:
    """Yield the records of a graph by dimension, in the order in which they can be inserted."""
    assert graph.dimension_data is not None
    records = graph.dimension_data.records
    for element in graph.pipeline_graph.universe.sorted(records.keys()):
        if (found := list(records[element.name])) and element.has_own_table:
            yield found


def _check_places(butler: Butler, refs: Sequence[DatasetRef]) -> None:
    """Check that no other dataset has the run, dataset type and data ID of an input."""
    runs = {ref.run for ref in refs}
    there: set[str] = set()
    for run in sorted(runs):
        if not has_collection(butler, run):
            continue
        if (kind := butler.collections.get_info(run).type) is not CollectionType.RUN:
            raise RepositoryError(
                f"The collection {run!r} of inputs is {kind.name} in the repository, not RUN; use another "
                "repository."
            )
        there.add(run)
    wanted: defaultdict[str, dict[tuple[str, DataCoordinate], DatasetRef]] = defaultdict(dict)
    for ref in refs:
        if ref.run in there:
            wanted[ref.datasetType.name][ref.run, ref.dataId] = ref
    for name, places in wanted.items():
        try:
            found = butler.query_datasets(name, sorted(there), find_first=False, limit=None, explain=False)
        except MissingDatasetTypeError:
            continue
        for own in found:
            if (other := places.get((own.run, own.dataId))) is not None:
                raise RepositoryError(
                    f"The repository has {_describe(own)} with the ID {own.id}, in the place of an input "
                    f"with the ID {other.id}; use another repository, or `butler prune-datasets`."
                )


def _place(ref: DatasetRef) -> tuple[str, str, DataCoordinate]:
    return ref.datasetType.name, ref.run, ref.dataId


def _describe(ref: DatasetRef) -> str:
    return f"{ref.datasetType.name} {{{format_data_id(ref.dataId.required)}}} of run {ref.run!r}"


def register_inputs(
    butler: Butler, source: Butler, graph: PredictedQuantumGraph, inputs: Mapping[uuid.UUID, DatasetRef]
) -> None:
    """Register dataset types, dimension records and RUN collections of inputs that ``source`` has."""
    for dataset_type in sorted({ref.datasetType for ref in inputs.values()}):
        butler.registry.registerDatasetType(dataset_type)
    for records in _dimension_records(graph):
        butler.registry.insertDimensionData(records[0].definition, *records, skip_existing=True)
    for run in sorted({ref.run for ref in inputs.values()}):
        if not has_collection(butler, run):
            documentation: str | None = None
            with best_effort(f"Can't read the documentation of run {run!r}", level=logging.DEBUG):
                documentation = source.registry.getCollectionDocumentation(run)
            butler.collections.register(run, doc=documentation)


def tag_inputs(butler: Butler, tag: str, refs: Collection[DatasetRef]) -> None:
    """Associate inputs with a TAGGED collection, as pipe_base's ``use_local_butler`` does.

    Calibrations with several validity ranges, which a TAGGED collection can't hold, are left out.
    """
    places: defaultdict[tuple[str, DataCoordinate], set[DatasetRef]] = defaultdict(set)
    for ref in refs:
        places[ref.datasetType.name, ref.dataId].add(ref)
    butler.registry.associate(tag, [next(iter(found)) for found in places.values() if len(found) == 1])
