"""Progress bars of a run in a terminal, one for each task, below the log.  Runs in the driver."""

from __future__ import annotations

__all__ = ["Bars", "render_bars"]

import contextlib
import logging
import sys
import threading
from collections.abc import Callable
from typing import IO, Any, Self, cast

from rich.console import Console, Group
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from .progress import ProgressSnapshot, TaskProgress
from .text import list_rates

_MAX_WIDTH = 110


def render_bars(snapshot: ProgressSnapshot) -> Group:
    """Build the bars of a run."""
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=30)
    table.add_column(ratio=1, min_width=8)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for task in snapshot.tasks:
        ended = task.done + task.failed + task.blocked
        hurt = task.failed + task.blocked > 0
        bar = ProgressBar(
            total=max(1, task.total),
            completed=ended,
            complete_style="red" if hurt else "cyan",
            finished_style="red" if hurt else "green",
        )
        table.add_row(task.label, bar, f"{ended}/{task.total}", _describe(task))
    return Group(Constrain(table, _MAX_WIDTH), Text(" · ".join(list_rates(snapshot)), style="dim"))


def _describe(task: TaskProgress) -> Text:
    """Return the counts of quanta that are neither done nor pending."""
    states = (
        (task.running, "running", "cyan"),
        (task.failed, "failed", "bold red"),
        (task.blocked, "blocked", "yellow"),
    )
    return Text("  ").join(Text(f"{n} {word}", style) for n, word, style in states if n)


class _Above:
    """A stream that writes above the bars."""

    def __init__(self, console: Console, stream: IO[str], drawing: threading.Lock):
        self._console = console
        self._drawing = drawing
        self._stream = stream
        self._held = ""

    def write(self, text: str) -> int:
        whole, newline, self._held = (self._held + text).rpartition("\n")
        if newline:
            # Not changed or cut at the width, so that text copied from the terminal equals the log.
            with self._drawing:
                self._console.print(Segments([Segment(whole + newline)]), soft_wrap=True)
        return len(text)

    def end_line(self) -> None:
        if self._held:
            self.write("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Bars:
    """Progress bars on standard error while the context lasts; other output goes above them.

    Parameters
    ----------
    console
        Console to draw on; standard error by default.
    """

    def __init__(self, look: Callable[[], ProgressSnapshot], console: Console | None = None):
        self._look = look
        self._console = Console(file=sys.stderr) if console is None else console
        self._live = Live(
            console=self._console,
            get_renderable=lambda: render_bars(self._look()),
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        # If two threads draw at once, a copy of the bars may stay whenever their number changes.
        self._drawing = threading.Lock()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            handlers = _terminal_handlers()
            stack.enter_context(contextlib.redirect_stderr(self._above(stack, sys.stderr)))
            for handler in handlers:
                stream = handler.stream
                handler.setStream(self._above(stack, stream))
                stack.callback(handler.setStream, stream)
            self._live.start()
            stack.callback(self._stop)
            # rich hides the cursor, which would stay hidden if this process were killed.
            self._console.show_cursor(True)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def draw(self) -> None:
        with self._drawing:
            self._live.refresh()

    def _stop(self) -> None:
        with self._drawing:
            self._live.stop()

    def _above(self, stack: contextlib.ExitStack, stream: IO[str]) -> IO[str]:
        """Build a stream that writes above the bars; the end of the context ends its last line."""
        above = _Above(self._console, stream, self._drawing)
        stack.callback(above.end_line)
        return cast("IO[str]", above)


def _terminal_handlers() -> list[logging.StreamHandler[IO[str]]]:
    """Return the log handlers that write to standard error."""
    return [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
    ]
