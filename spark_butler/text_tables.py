"""Tables of plain text."""

from __future__ import annotations

__all__ = ["align_rows"]

from collections.abc import Sequence


def align_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    """Write rows so that their columns stand below each other.

    Parameters
    ----------
    rows
        Cells of each row; there is at least one row, the heading.

    Returns
    -------
    lines
        A line for each row, indented; the first column is flush left, all
        others are flush right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append(f"  {'  '.join([first.ljust(widths[0]), *cells])}")
    return lines
