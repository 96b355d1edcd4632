"""Data IDs that a query selects, with their datasets and datastore records.  Runs in the driver."""

from __future__ import annotations

__all__ = ["Resolved", "find_data_ids", "find_output_types"]

import dataclasses
import itertools
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from lsst.daf.butler import (
    Butler,
    ButlerUserError,
    CollectionType,
    DataCoordinate,
    DatasetIdGenEnum,
    DatasetRef,
    DatasetType,
    DimensionGroup,
    EmptyQueryResultError,
    InvalidQueryError,
    MissingCollectionError,
    MissingDatasetTypeError,
)
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.daf.butler.utils import has_globs

from .._daf_butler import export_records
from ..errors import EmptyGraphError, OptionsError
from ..text import brief
from .output_checks import check_name
from .unknown_names import check_collections, explain_query, unknown_collection, unknown_dataset_type


@dataclasses.dataclass(frozen=True)
class Resolved:
    """The data IDs of a query, with the datasets that belong to them."""

    dataset_type: DatasetType
    refs: tuple[DatasetRef, ...]
    """Its datasets, one for each data ID, with dimension records."""

    others: Mapping[str, Mapping[tuple[Any, ...], tuple[DatasetRef, ...]]]
    """For each further dataset type: the datasets by data ID."""

    other_types: tuple[DatasetType, ...]
    records: Mapping[str, DatastoreRecordData]
    """Datastore records of all these datasets, by name of the datastore."""

    @property
    def dimensions(self) -> DimensionGroup:
        """Dimensions of the data IDs."""
        return self.dataset_type.dimensions

    @property
    def dataset_types(self) -> list[DatasetType]:
        """All dataset types."""
        return [self.dataset_type, *self.other_types]

    @property
    def data_ids(self) -> list[DataCoordinate]:
        """The data IDs, in order."""
        return [ref.dataId for ref in self.refs]

    def related(self, ref: DatasetRef) -> dict[str, tuple[DatasetRef, ...]]:
        """Return the datasets that belong to a data ID, by name of the dataset type."""
        key = ref.dataId.required_values
        found = {name: by_data_id.get(key, ()) for name, by_data_id in self.others.items()}
        return {ref.datasetType.name: (ref,), **found}


def find_data_ids(
    butler: Butler,
    dataset_type: str,
    *,
    also: Sequence[str] = (),
    where: str = "",
    bind: Mapping[str, Any] | None = None,
    collections: Sequence[str] = (),
    limit: int | None = None,
) -> Resolved:
    """Read the datasets that a query selects, of which there is at least one, and their datastore records.

    Parameters
    ----------
    dataset_type
        Name of the dataset type whose data IDs are wanted.
    also
        Names of further dataset types, whose datasets are found for each data ID: calibrations by their
        validity, others by their dimensions.
    collections
        Collections to search, or patterns of their names (``"u/me/*"``); the butler's own by default.
    """
    names, are_ordered = _find_collections(butler, collections)
    main = _dataset_type(butler, dataset_type)
    others = {name: _dataset_type(butler, name) for name in also if name != dataset_type}
    try:
        # If the query finds nothing, this raises an error with the reason.
        refs = butler.query_datasets(
            main,
            collections=names,
            find_first=are_ordered,
            where=where,
            bind=dict(bind or {}),
            limit=limit,
            with_dimension_records=True,
        )
    except EmptyQueryResultError as exc:
        text = f" with {where!r}" if where else ""
        raise EmptyGraphError(
            f"There are no datasets of type {dataset_type!r} in {', '.join(names)}{text}: "
            f"{' '.join(exc.reasons) or 'they exist, but not with such data IDs.'}"
        ) from exc
    except InvalidQueryError as exc:
        raise explain_query(butler, where, exc) from exc
    except (ButlerUserError, ValueError, LookupError, TypeError) as exc:
        raise OptionsError(f"The query {where!r} can't be used: {brief(exc)}") from exc
    refs.sort(key=lambda ref: ref.dataId)
    for one, two in itertools.pairwise(refs):
        if one.dataId == two.dataId:
            raise OptionsError(
                f"{', '.join(collections)} leads to two {dataset_type!r} of {one.dataId}, in {one.run!r} and "
                f"in {two.run!r}; name the collections one by one, in the order in which to search them."
            )
    found = {name: _find_related(butler, other, refs, names) for name, other in others.items()}
    everything = {
        ref.id: ref
        for group in (refs, *(each for by_data_id in found.values() for each in by_data_id.values()))
        for ref in group
    }
    return Resolved(
        main, tuple(refs), found, tuple(others.values()), export_records(butler, everything.values())
    )


def find_output_types(
    butler: Butler,
    outputs: Iterable[str] | Mapping[str, str],
    output_run: str | None,
    data_ids: Collection[DataCoordinate],
    *,
    clobber: bool = False,
) -> dict[str, DatasetType]:
    """Check that outputs can be put for data IDs, and return their dataset types; write nothing.

    Parameters
    ----------
    outputs
        Names of dataset types; or names with storage classes, for types that are registered, if need be, with
        the dimensions of the data IDs.
    clobber
        Whether datasets that are in the run are replaced.

    Raises
    ------
    spark_butler.errors.UserError
        Raised if there are outputs without a run, or a run without outputs; if a type is unknown, has
        dimensions that the data IDs lack, or another definition; if several data IDs would put the same
        dataset; or if the run has datasets that must not be replaced.
    """
    if not outputs and not output_run:
        return {}
    if not outputs or not output_run:
        raise OptionsError(
            "outputs (what is put) and output_run (the RUN collection it goes to) belong together."
        )
    check_name("output_run", output_run)
    classes = dict(outputs) if isinstance(outputs, Mapping) else dict.fromkeys(outputs, "")
    dimensions = next(iter(data_ids)).dimensions
    types: dict[str, DatasetType] = {}
    for name, storage_class in classes.items():
        types[name] = _output_type(butler, name, storage_class, dimensions)
        _check_output(butler, types[name], output_run, data_ids, clobber=clobber)
    return types


def _output_type(butler: Butler, name: str, storage_class: str, dimensions: DimensionGroup) -> DatasetType:
    """Return the definition of an output, which may be new."""
    if not storage_class:
        return _dataset_type(butler, name)
    try:
        made = DatasetType(name, dimensions, butler.storageClasses.getStorageClass(storage_class))
    except (KeyError, ValueError) as exc:
        raise OptionsError(f"Output {name!r}: there is no storage class {storage_class!r}.") from exc
    try:
        known = butler.get_dataset_type(name)
    except MissingDatasetTypeError:
        return made
    if known != made:
        raise OptionsError(f"Dataset type {name!r} is {known} in the repository; {made} was asked for.")
    return known


def _check_output(
    butler: Butler,
    dataset_type: DatasetType,
    run: str,
    data_ids: Collection[DataCoordinate],
    *,
    clobber: bool,
) -> None:
    """Check that a dataset can be put for each data ID."""
    name = dataset_type.name
    have = next(iter(data_ids)).dimensions
    if lacking := sorted(set(dataset_type.dimensions.names) - set(have.names)):
        raise OptionsError(f"Output {name!r} has dimensions that the data IDs lack: {', '.join(lacking)}.")
    own = {data_id.subset(dataset_type.dimensions): data_id for data_id in data_ids}
    if len(own) < len(data_ids):
        raise OptionsError(
            f"Output {name!r} has the dimensions {', '.join(dataset_type.dimensions.required)}, so that "
            f"several of the {len(data_ids)} data IDs would put the same dataset."
        )
    try:
        info = butler.collections.get_info(run)
    except MissingCollectionError:
        return
    if info.type is not CollectionType.RUN:
        raise OptionsError(f"output_run {run!r} is a {info.type.name} collection; outputs need a RUN.")
    try:
        existing = butler.query_datasets(dataset_type, collections=run, limit=None, explain=False)
    except MissingDatasetTypeError:
        return
    in_the_way = [ref for ref in existing if ref.dataId in own]
    foreign = [ref for ref in in_the_way if ref.id != _own_id(ref)]
    if foreign or (in_the_way and not clobber):
        hint = "" if foreign else ", or clobber_outputs=True to replace them"
        raise OptionsError(
            f"Run {run!r} has {len(in_the_way)} datasets of type {name!r} for these data IDs already; "
            f"give another output_run{hint}."
        )


def _own_id(ref: DatasetRef) -> uuid.UUID:
    """Return the ID that a dataset gets if a worker puts it."""
    return DatasetRef(
        ref.datasetType, ref.dataId, ref.run, id_generation_mode=DatasetIdGenEnum.DATAID_TYPE_RUN
    ).id


def _find_related(
    butler: Butler, dataset_type: DatasetType, refs: Sequence[DatasetRef], collections: Sequence[str]
) -> dict[tuple[Any, ...], tuple[DatasetRef, ...]]:
    """Find the datasets of another type that belong to data IDs."""
    dimensions = refs[0].dataId.dimensions
    found: defaultdict[tuple[Any, ...], list[DatasetRef]] = defaultdict(list)
    name = dataset_type.name
    try:
        with butler.query() as query:
            query = query.join_data_coordinates([ref.dataId for ref in refs])
            rows = query.join_dataset_search(name, collections).general(
                dimensions | dataset_type.dimensions,
                dataset_fields={name: {"dataset_id", "run"}},
                find_first=True,
            )
            for row in rows.with_dimension_records().iter_tuples(dataset_type):
                found[row.data_id.subset(dimensions).required_values].append(row.refs[0])
    except (ButlerUserError, ValueError, LookupError) as exc:
        raise OptionsError(
            f"Datasets of type {name!r} can't be found for the data IDs of {refs[0].datasetType.name!r}: "
            f"{brief(exc)}"
        ) from exc
    return {
        key: tuple(sorted({ref.id: ref for ref in each}.values(), key=lambda ref: ref.dataId))
        for key, each in found.items()
    }


def _find_collections(butler: Butler, collections: Sequence[str]) -> tuple[Sequence[str], bool]:
    """Return the collections to search, and whether only the first dataset that is found counts."""
    names = tuple(collections) or tuple(butler.collections.defaults)
    if not names:
        raise OptionsError("No collections to search: give collections=.")
    found: dict[str, None] = {}
    for name in names:
        if not has_globs(name):
            check_collections(butler, [name])
            found[name] = None
        elif matches := sorted(butler.collections.query(name, flatten_chains=True)):
            found |= dict.fromkeys(matches)
        else:
            raise unknown_collection(butler, name)
    return tuple(found), not has_globs(names)


def _dataset_type(butler: Butler, name: str) -> DatasetType:
    """Find the definition of a dataset type."""
    parent, component = DatasetType.splitDatasetTypeName(name)
    if component is not None:
        raise OptionsError(
            f"{name!r} is a component; give {parent!r}, and let functions read it by "
            f"b.get({name!r}, data_id)."
        )
    try:
        return butler.get_dataset_type(name)
    except MissingDatasetTypeError as exc:
        raise unknown_dataset_type(butler, name) from exc
