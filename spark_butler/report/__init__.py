"""What people see of a run: bars and lines while it goes on, its status for others, and its report."""

from __future__ import annotations

__all__ = [
    "AttemptFolder",
    "Progress",
    "RunInfo",
    "RunRecord",
    "RunReporter",
    "clean_command",
    "find_attempts",
    "format_data_id",
    "format_seconds",
    "is_silent",
    "make_content",
    "make_page",
    "read_json",
]

from ..text import format_data_id, format_seconds
from .content import make_content
from .folder import AttemptFolder, find_attempts, read_json
from .html import make_page
from .progress import Progress
from .record import RunInfo, RunRecord
from .rerun import clean_command
from .status import is_silent
from .watch import RunReporter
