"""Reports of runs: bars, log lines and a status file while a run goes on, and a report at its end.

`RunReporter` observes a run in the driver.  It keeps counts (`Progress`) and outcomes (`RunRecord`).  Into
the `AttemptFolder` of the run, below the root of a datastore, it writes ``status.json`` every 10 s, and
``report.json`` and ``report.html`` at the end.  The commands ``status``, ``report`` and ``cancel`` need only
these files.  `make_content` builds the content of ``report.json``; `format_report` and `make_page` show it as
text and as a page.
"""

from __future__ import annotations

__all__ = [
    "AttemptFolder",
    "Progress",
    "RunInfo",
    "RunRecord",
    "RunReporter",
    "clean_command",
    "find_attempts",
    "format_progress",
    "format_report",
    "is_silent",
    "make_content",
    "make_page",
    "read_json",
]

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .content import make_content
    from .folder import AttemptFolder, find_attempts, read_json
    from .html import make_page
    from .progress import Progress
    from .record import RunInfo, RunRecord
    from .reporter import RunReporter
    from .rerun import clean_command
    from .status_file import is_silent
    from .text import format_progress, format_report

__getattr__ = lazy_names(
    __name__,
    {
        "AttemptFolder": "folder",
        "Progress": "progress",
        "RunInfo": "record",
        "RunRecord": "record",
        "RunReporter": "reporter",
        "clean_command": "rerun",
        "find_attempts": "folder",
        "format_progress": "text",
        "format_report": "text",
        "is_silent": "status_file",
        "make_content": "content",
        "make_page": "html",
        "read_json": "folder",
    },
)
