"""What people see of a run: bars and lines while it goes on, its status for others, and its report."""

from __future__ import annotations

__all__ = [
    "AttemptFolder",
    "Run",
    "RunRecord",
    "RunWatch",
    "clean_command",
    "find_attempts",
    "format_data_id",
    "format_seconds",
    "is_silent",
    "make_content",
    "make_page",
    "read_json",
]

from ._content import make_content
from ._files import AttemptFolder, find_attempts, read_json
from ._format import format_data_id, format_seconds
from ._page import make_page
from ._record import Run, RunRecord
from ._rerun import clean_command
from ._status import is_silent
from ._watch import RunWatch
