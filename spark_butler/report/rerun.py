"""Commands that run again what has failed."""

from __future__ import annotations

__all__ = ["clean_command", "data_id_expression", "rerun_command"]

import shlex
from collections.abc import Mapping, Sequence

from ..text import hide_secrets

_SPECIAL = frozenset('"$`\\!')
_ALONE = frozenset(
    {
        "--extend-run",
        "--skip-existing",
        "--clobber-outputs",
        "--replace-run",
        "--no-progress",
        "--progress",
        "--dry-run",
    }
)
_WITH_VALUE = frozenset({"-d", "--data-query", "--prune-replaced", "--provenance-graph", "--select-tasks"})


def _quote(word: str) -> str:
    """Quote a word for a shell, in double quotes where it has single ones, as expressions do."""
    if "'" in word and not _SPECIAL.intersection(word):
        return f'"{word}"'
    return shlex.quote(word)


def clean_command(command: Sequence[str]) -> list[str]:
    """Blank out secrets in a command line.

    Parameters
    ----------
    command
        The program and its arguments.
    """
    return [hide_secrets(word) for word in command]


def data_id_expression(data_id: Mapping[str, object]) -> str:
    """Write a data ID as an expression for ``-d``.

    Parameters
    ----------
    data_id
        Values by name of the dimension.
    """
    terms = []
    for name, value in data_id.items():
        text = str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"
        terms.append(f"{name} = {text}")
    return " AND ".join(terms)


def rerun_command(
    command: Sequence[str], label: str | None = None, data_id: Mapping[str, object] | None = None
) -> str:
    """Write the command that runs again what a run has not done.

    Parameters
    ----------
    command
        The program and the arguments of the run.
    label, data_id
        Task and data ID of the only quantum to run again; its task and those
        before it are selected, and of these all is skipped that is done.
        The tasks behind it are left out: they might gather from what is
        outside the data ID.

    Returns
    -------
    text
        The same command, continuing the same run, quoted for a shell; empty
        where no command is known.  A graph from a file can't be narrowed:
        then it is the command for all that is not done.
    """
    if not command:
        return ""
    kept: list[str] = []
    queries: list[str] = []
    selected = ""
    narrow = label is not None
    words = iter(command)
    for word in words:
        name, has_value, value = word.partition("=") if word.startswith("--") else (word[:2], "", word[2:])
        if name in _ALONE:
            continue
        if name in _WITH_VALUE:
            if not (has_value or value):
                value = next(words, "")
            if name in ("-d", "--data-query"):
                queries.append(value)
            elif name == "--select-tasks":
                selected = value
            continue
        narrow = narrow and name not in ("-g", "--qgraph")
        kept.append(word)
    kept += ["--extend-run", "--skip-existing", "--clobber-outputs"]
    if narrow:
        selected = f"({selected}) & (<={label})" if selected else f"<={label}"
    if selected:
        kept += ["--select-tasks", selected]
    terms = [f"({query})" for query in queries if query]
    if narrow and data_id:
        own = data_id_expression(data_id)
        terms.append(f"({own})" if terms else own)
    if terms:
        kept += ["-d", " AND ".join(terms)]
    return " ".join(map(_quote, kept))
