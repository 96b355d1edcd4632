"""Temporary dataset types: their choice, and sizes of their datasets in earlier runs.  Runs in the driver."""

from __future__ import annotations

__all__ = ["AUTO", "find_temporary_types", "measure_sizes"]

import fnmatch
from collections.abc import Collection, Iterable

from lsst.daf.butler import Butler, MissingCollectionError, MissingDatasetTypeError
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.pipe.base.pipeline_graph import PipelineGraph

from .._daf_butler import export_records
from ..codecs import check_storage_class
from ..errors import OptionsError
from ..model.options import RunOptions
from ..text import suggest

AUTO = "auto"
"""The pattern for all dataset types that tasks of the graph both make and read."""


def find_temporary_types(pipeline_graph: PipelineGraph, options: RunOptions) -> dict[str, str]:
    """Return the names of the dataset types that are temporary, with the reason for each.

    Metadata, logs and init-outputs are never temporary.  An `OptionsError` is raised if a pattern
    matches no type that could be temporary.
    """
    always = {
        edge.dataset_type_name
        for task in pipeline_graph.tasks.values()
        for edge in (task.metadata_output, task.log_output)
        if edge is not None
    }
    candidates = {
        edge.parent_dataset_type_name
        for task in pipeline_graph.tasks.values()
        for edge in task.outputs.values()
    } - always
    temporary: dict[str, str] = {}
    if options.store is not None:
        everything = candidates | always | set(pipeline_graph.dataset_types)
        for pattern in options.store:
            _match(pattern, everything, "--store")
        for name in candidates:
            if not _fits(name, options.store):
                temporary[name] = "not among --store"
    for pattern in options.temporary:
        if pattern == AUTO:
            for name in candidates:
                readers = pipeline_graph.consumers_of(name)
                if readers and not _fits(name, options.store):
                    labels = ", ".join(sorted(task.label for task in readers))
                    temporary[name] = f"auto: read by {labels}"
        else:
            temporary.update(
                (name, f"--temporary {pattern}") for name in _match(pattern, candidates, "--temporary")
            )
    for name in temporary:
        check_storage_class(pipeline_graph.dataset_types[name].storage_class)
    return dict(sorted(temporary.items()))


def measure_sizes(butler: Butler, names: Iterable[str]) -> dict[str, float]:
    """Return the mean file size in bytes of datasets of some types in earlier runs, if there are any."""
    sizes: dict[str, float] = {}
    for name in names:
        try:
            refs = butler.query_datasets(name, collections="*", find_first=False, limit=50, explain=False)
        except (MissingDatasetTypeError, MissingCollectionError):
            continue
        records = export_records(butler, refs)
        found = [
            sum(
                info.file_size
                for infos in tables.values()
                for info in infos
                if isinstance(info, StoredFileInfo)
            )
            for data in records.values()
            for tables in data.records.values()
        ]
        if found:
            sizes[name] = sum(found) / len(found)
    return sizes


def _fits(name: str, patterns: Iterable[str] | None) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns or ())


def _match(pattern: str, names: Collection[str], option: str) -> list[str]:
    """Return the names that match a pattern; raise if none does."""
    found = fnmatch.filter(names, pattern)
    if not found:
        raise OptionsError(
            f"{option} {pattern!r} matches no output of the pipeline; {suggest(pattern, names)}"
        )
    return found
