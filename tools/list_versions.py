#!/usr/bin/env python3
"""Page that lists the versions of the documentation in a folder: newest release first, then dev."""

import html
import re
import sys
from pathlib import Path


def order(name: str) -> tuple[int, ...]:
    """Return the sort key of a version: the numbers of a release; other names are less than any release."""
    return tuple(map(int, re.findall(r"\d+", name))) if re.fullmatch(r"v\d+(\.\d+)*", name) else (-1,)


def main(folder: Path) -> None:
    """Write ``index.html``."""
    names = sorted(
        (path.name for path in folder.iterdir() if (path / "docs" / "index.html").is_file()),
        key=order,
        reverse=True,
    )
    items = "\n".join(
        f'<li><a href="{html.escape(name)}/docs/index.html">{html.escape(name)}</a></li>' for name in names
    )
    (folder / "index.html").write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>spark-butler</title></head><body><h1>spark-butler</h1><ul>\n{items}\n</ul></body></html>\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
