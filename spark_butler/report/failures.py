"""The failures of a run, as a table in a notebook.  Runs in the driver."""

from __future__ import annotations

__all__ = ["Failures", "QuantumFailure", "describe_failure"]

import dataclasses
import linecache
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from astropy.table import Table
from lsst.daf.butler import ButlerLogRecords
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.pipe.base import PipelineTask
from lsst.pipe.base.pipeline_graph import TaskNode
from lsst.resources import ResourcePath

from ..model.outcomes import QuantumOutcome
from ..text import cell_name
from .html import render
from .text import failure_text

_FRAME = re.compile(
    r'^ +File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<where>\S+)(?:\n {4}(?P<code>[^\s^~].*))?$',
    re.MULTILINE,
)
_COLUMNS = ("label", "data ID", "error", "line", "log")
_MOST_SHOWN = 50


@dataclasses.dataclass(frozen=True)
class QuantumFailure:
    """A quantum that failed."""

    label: str
    data_id: Mapping[str, Any]
    error: str
    """Exception, signal or limit."""
    line: str
    """Line of the task that raised: file, line, function, code."""
    log_uri: str
    """Address of its log; empty if the log could not be written."""
    outcome: QuantumOutcome
    """The outcome of its last attempt."""

    @property
    def traceback(self) -> str:
        """Python traceback, if there was one."""
        return _FRAME.sub(_name_cell, self.outcome.traceback)

    @property
    def log(self) -> str:
        """Log of the quantum; only its last lines if the log could not be written."""
        if not self.log_uri:
            return self.outcome.log_tail
        return str(ButlerLogRecords.from_raw(ResourcePath(self.log_uri).read()))


class Failures(Sequence[QuantumFailure]):
    """The quanta of a run that failed, in the order in which their outcomes arrived.

    Examples
    --------
    >>> run = butler.run(pipeline, output="u/me/fails", where="exposure = 202601010001 AND detector = 1")
    >>> run.wait().failures
    isr {...exposure: 202601010001...}: CalibrationMissingError: No flat for ...
    >>> run.failures.table().colnames
    ['label', 'data ID', 'error', 'line', 'log']
    """

    def __init__(self, failures: Iterable[QuantumFailure]):
        self._failures = list(failures)

    @overload
    def __getitem__(self, index: int) -> QuantumFailure: ...

    @overload
    def __getitem__(self, index: slice) -> Failures: ...

    def __getitem__(self, index: int | slice) -> QuantumFailure | Failures:
        return Failures(self._failures[index]) if isinstance(index, slice) else self._failures[index]

    def __len__(self) -> int:
        return len(self._failures)

    def table(self) -> Table:
        """Return a table of label, data ID, error, line in the task, and address of the log."""
        rows = list(self._rows())
        return Table(rows=rows or None, names=_COLUMNS, dtype=None if rows else [str] * len(_COLUMNS))

    def __repr__(self) -> str:
        lines = [
            f"{label} {{{data_id}}}: {error} [{line}]" for label, data_id, error, line, _ in self._rows()
        ]
        more = f"\n... and {len(lines) - _MOST_SHOWN} more" if len(lines) > _MOST_SHOWN else ""
        return "\n".join(lines[:_MOST_SHOWN]) + more if lines else "No failures."

    def _repr_html_(self) -> str:
        return render("failures.html.j2", columns=_COLUMNS, rows=list(self._rows()), most=_MOST_SHOWN)

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for failure in self._failures:
            data_id = ", ".join(f"{key}: {value}" for key, value in failure.data_id.items())
            yield failure.label, data_id, failure.error, failure.line, failure.log_uri


def describe_failure(
    outcome: QuantumOutcome, task: TaskNode, roots: Mapping[str, ResourcePath]
) -> QuantumFailure:
    """Describe a failed quantum of a task; ``roots`` are those of the datastores, by name."""
    log = "" if task.log_output is None else _find_log(outcome, task.log_output.dataset_type_name, roots)
    line = _find_line(outcome.traceback, task.task_class)
    return QuantumFailure(
        outcome.label, dict(outcome.report.dataId), failure_text(outcome), line, log, outcome
    )


def _find_line(traceback: str, task_class: type[PipelineTask]) -> str:
    """Return the innermost line of a task in a traceback; without one, the innermost line."""
    frames = [match.groupdict() for match in _FRAME.finditer(traceback)]
    if not frames:
        return ""
    files = {
        member.__code__.co_filename
        for each in task_class.__mro__
        if each.__module__.partition(".")[0] != "lsst"
        for member in vars(each).values()
        if hasattr(member, "__code__")
    }
    frame = next((each for each in reversed(frames) if each["file"] in files), frames[-1])
    cell = cell_name(frame["file"])
    place = f"{cell}, line {frame['line']}" if cell else f"{Path(frame['file']).name}:{frame['line']}"
    place = f"{place} in {frame['where']}"
    # The worker does not have the source of a notebook's cells.
    code = frame["code"] or linecache.getline(frame["file"], int(frame["line"])).strip()
    return f"{place}: {code}" if code else place


def _name_cell(frame: re.Match[str]) -> str:
    """Return a frame of a traceback with the name of its cell."""
    cell = cell_name(frame["file"])
    return frame[0].replace(f'File "{frame["file"]}"', cell) if cell else frame[0]


def _find_log(outcome: QuantumOutcome, log_type: str, roots: Mapping[str, ResourcePath]) -> str:
    """Return the address of a log among the outputs of an attempt."""
    for name, data in outcome.records.items():
        for tables in data.records.values():
            for info in (info for infos in tables.values() for info in infos):
                if isinstance(info, StoredFileInfo) and f"/{log_type}/" in f"/{info.path}" and name in roots:
                    return str(roots[name].join(str(info.path)))
    return ""
