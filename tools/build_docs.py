#!/usr/bin/env python3
"""Builder of the documentation with its API reference, into build/docs/; `make docs` runs it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click

_ROOT = Path(__file__).resolve().parents[1]
_SOURCE = _ROOT / "build" / "docs-source"
_TARGET = _ROOT / "build" / "docs"


def _walk(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[click.Context]:
    """Yield a command and all its subcommands."""
    # With resilient parsing, click runs no callbacks of options, which could start something.
    context = click.Context(
        command, info_name=name, parent=parent, max_content_width=100, resilient_parsing=True
    )
    yield context
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            below = command.get_command(context, each)
            assert below is not None
            yield from _walk(below, each, context)


def _write_command_page(path: Path) -> None:
    """Write a page with the help texts of all commands."""
    from spark_butler.cli.main import main

    pages = [
        f"## {context.command_path}\n\n```text\n{context.get_help()}\n```\n"
        for context in _walk(main, "spark-butler")
    ]
    path.write_text("# The command\n\nWhat `--help` says.\n\n" + "\n".join(pages))


def main() -> int:
    """Copy the sources of the documentation to places where their links are valid, and build the pages."""
    for folder in (_SOURCE, _TARGET):
        shutil.rmtree(folder, ignore_errors=True)
    for name in ("docs", "conf", "jobs"):
        shutil.copytree(_ROOT / name, _SOURCE / name, ignore=shutil.ignore_patterns("conf.py", "__pycache__"))
    for name in ("README.md", "CONTRIBUTING.md"):
        shutil.copy(_ROOT / name, _SOURCE)
    for table in (_SOURCE / "docs").glob("*-benchmark.md"):
        text = table.read_text()
        if not text.startswith("# "):
            table.write_text(f"# Benchmark: {table.stem.removesuffix('-benchmark')}\n\n{text}")
    _write_command_page(_SOURCE / "docs" / "command.md")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q"]
    status = subprocess.run([*command, "-c", _ROOT / "docs", _SOURCE, _TARGET]).returncode
    if status == 0:
        (_TARGET / "index.html").write_text(
            '<!DOCTYPE html><meta charset="utf-8"><title>spark-butler</title>'
            '<meta http-equiv="refresh" content="0; url=docs/index.html">'
            '<a href="docs/index.html">spark-butler</a>\n'
        )
        sys.stdout.write(f"The documentation is in {_TARGET / 'index.html'}.\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
