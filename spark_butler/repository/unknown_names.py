"""Errors about unknown collections, runs and dataset types, with similar names.  Runs in the driver."""

from __future__ import annotations

__all__ = [
    "check_collections",
    "check_input_types",
    "explain_query",
    "has_collection",
    "unknown_collection",
    "unknown_dataset_type",
    "unknown_run",
]

import re
from collections.abc import Iterable

from lsst.daf.butler import Butler, InvalidQueryError, MissingCollectionError
from lsst.daf.butler.utils import has_globs
from lsst.pipe.base.pipeline_graph import PipelineGraph

from ..errors import OptionsError, RepositoryError
from ..text import brief, suggest

_IDENTIFIER = re.compile(r"identifier '(\w+)[\w.]*'")
_FIELD = re.compile(r"field '(\w+)' for (\w+)")
_EXAMPLE = "expected an expression such as \"instrument='SimCam' AND visit IN (1, 2)\"."
_MOCK = "_mock_"


def unknown_collection(butler: Butler, name: str) -> RepositoryError:
    """Return the error about a collection that does not exist."""
    known = suggest(name, butler.collections.query("*"))
    return RepositoryError(f"The repository has no collection {'like ' * has_globs(name)}{name!r}; {known}")


def unknown_dataset_type(butler: Butler, name: str) -> RepositoryError:
    """Return the error about a dataset type that is not registered."""
    known = suggest(name, (each.name for each in butler.registry.queryDatasetTypes()))
    return RepositoryError(f"The repository has no dataset type {name!r}; {known}")


def check_collections(butler: Butler, names: Iterable[str]) -> None:
    """Check that collections exist; patterns are not checked."""
    for name in names:
        if not has_globs(name) and not has_collection(butler, name):
            raise unknown_collection(butler, name)


def has_collection(butler: Butler, name: str) -> bool:
    """Return whether a collection exists."""
    try:
        butler.collections.get_info(name)
    except MissingCollectionError:
        return False
    return True


def check_input_types(butler: Butler, graph: PipelineGraph) -> None:
    """Check that the dataset types that a pipeline requires are registered."""
    known = {each.name for each in butler.registry.queryDatasetTypes()}
    for name, node in graph.iter_overall_inputs():
        if name in known or (node is not None and node.is_prerequisite):
            continue
        if (real := name.removeprefix(_MOCK)) in known and real != name:
            raise RepositoryError(
                f"The repository has no dataset type {name!r}; give --unmocked-dataset-types {real} to read "
                f"{real!r} instead."
            )
        raise unknown_dataset_type(butler, name)


def explain_query(butler: Butler, query: str, error: InvalidQueryError) -> OptionsError:
    """Return the error about a data query, with similar names for an unknown one."""
    reason = brief(error)
    elements = butler.dimensions.elements
    if (found := _IDENTIFIER.search(reason)) is not None:
        remedy = suggest(found[1], elements.names, f"write texts in quotes: '{found[1]}'.")
    elif (found := _FIELD.search(reason)) is not None and found[2] in elements:
        remedy = suggest(found[1], elements[found[2]].schema.names)
    else:
        remedy = _EXAMPLE
    return OptionsError(f"The data query {query!r} can't be used: {reason.rstrip('.')}; {remedy}")


def unknown_run(repo: str, run: str, names: Iterable[str], expected: str) -> RepositoryError:
    """Return the error about a run that a repository does not have."""
    names = sorted(set(names))
    if near := [name for name in names if run and name.startswith(f"{run.rstrip('/')}/")][-3:]:
        remedy = f"did you mean {' or '.join(map(repr, near))}?"
    else:
        remedy = suggest(run, names, f"`spark-butler status {repo}` lists the runs.")
    return RepositoryError(f"The repository {repo!r} has no run {run!r}; expected {expected}; {remedy}")
