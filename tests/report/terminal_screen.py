"""Screen of a terminal after text was written to it, as far as bars and logs need it."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


def read_screen(written: str, *, width: int) -> list[str]:
    """Return all lines that are to be seen, those that have left the top of the screen included.

    Anything that moves the cursor in a way not known here is an error.
    """
    lines = [""]
    row = column = 0
    position = 0
    while position < len(written):
        token = _TOKEN.match(written, position)
        assert token is not None, written[position : position + 20]
        position = token.end()
        arguments, command, control, text = token.groups()
        if control == "\r":
            column = 0
        elif control == "\n":
            row += 1
        elif command == "A":
            row -= int(arguments or 1)
            assert row >= 0
        elif command == "K":
            assert arguments == "2"
            lines[row] = ""
        elif command is not None:
            assert command == "m" or (command in "hl" and arguments == "?25"), token[0]
        for character in text or "":
            if column == width:
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            line = lines[row].ljust(column)
            lines[row] = line[:column] + character + line[column + 1 :]
            column += 1
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines]
