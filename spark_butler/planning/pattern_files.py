"""Patterns of dataset types in files of the user.

Runs in the driver.
"""

from __future__ import annotations

__all__ = ["read_patterns", "retained_types"]

from collections.abc import Collection
from pathlib import Path
from types import EllipsisType

import yaml
from lsst.daf.butler.utils import globToRegex
from lsst.pipe.base.pipeline_graph import PipelineGraph

from ..errors import OptionsError
from ..text import brief


def read_patterns(option: str, file: str) -> list[str]:
    """Read a YAML file with a list of patterns.

    Raises
    ------
    spark_butler.errors.OptionsError
        Raised if the file can't be read, or contains anything else.
    """
    try:
        content = yaml.safe_load(Path(file).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise OptionsError(f"{option} file {file!r} can't be read: {brief(exc)}") from exc
    if not isinstance(content, list) or not content or not all(isinstance(item, str) for item in content):
        raise OptionsError(f"{option} file {file!r} must contain a non-empty YAML sequence of strings.")
    return content


def retained_types(
    pipeline_graph: PipelineGraph, retained: list[str] | None, absent: Collection[str]
) -> list[str] | None:
    """Return patterns of the dataset types that a skipped quantum must have left.

    Parameters
    ----------
    retained
        The result of `RunRequest.read_retained`.
    absent
        Names of the dataset types that are temporary, or were in the runs
        whose quanta are skipped.

    Returns
    -------
    patterns
        Patterns for pipe_base's builder; `None` for all dataset types.
    """
    if not absent:
        return retained
    expressions = globToRegex(retained)
    names = set(pipeline_graph.dataset_types) - set(absent)
    if not isinstance(expressions, EllipsisType):
        names = {
            name
            for name in names
            if any(name == each if isinstance(each, str) else each.search(name) for each in expressions)
        }
    # The builder takes an empty list for all types; inputs that no task makes always exist.
    names.update(name for name in pipeline_graph.dataset_types if pipeline_graph.producer_of(name) is None)
    return sorted(names)
