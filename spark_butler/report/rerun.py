"""Commands that resume a run, or rerun its failed quanta.  Runs in the driver when a run ends."""

from __future__ import annotations

__all__ = ["clean_command", "data_id_expression", "explain_resume", "rerun_command"]

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ..masking import hide_secrets

_SPECIAL = frozenset('"$`\\!')
# Options that write files, only show something, or are replaced in a rerun.
_DROPPED_FLAGS = {
    *("--extend-run", "--skip-existing", "--clobber-outputs", "--replace-run", "--rebase", "--dry-run"),
    *("--no-progress", "--progress", "--take-over", "--coverage", "--cov-report", "--no-cov-report"),
}
_DROPPED = {
    *("-d", "--data-query", "--prune-replaced", "--show", "--format", "--cov-packages", "--profile"),
    *("-q", "--save-qgraph", "-s", "--save-pipeline", "--pipeline-dot", "--pipeline-mermaid"),
    *("--qgraph-dot", "--qgraph-mermaid", "--summary", "--provenance-graph", "--log-file"),
    *("--metrics-file", "--metrics-port"),
}
_MOCK_PREFIX = "_mock_"


def _quote(word: str) -> str:
    """Quote a word for a shell, in double quotes if it contains single ones, as expressions do."""
    if "'" in word and not _SPECIAL.intersection(word):
        return f'"{word}"'
    return shlex.quote(word)


def clean_command(command: Sequence[str]) -> list[str]:
    """Blank out secrets in a command line."""
    return [hide_secrets(word) for word in command]


def data_id_expression(data_id: Mapping[str, object]) -> str:
    """Write a data ID as an expression for ``-d``."""
    terms = []
    for name, value in data_id.items():
        text = str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"
        terms.append(f"{name} = {text}")
    return " AND ".join(terms)


def rerun_command(
    command: Sequence[str],
    where: str = "",
    *,
    label: str | None = None,
    data_id: Mapping[str, object] | None = None,
) -> str:
    """Return the command that runs the missing quanta of a run, in the same run, quoted for a shell.

    It writes no files beside the run, and is empty if no command is known.  ``where`` is the
    data query of the run, which may come from an options file.  ``label`` and ``data_id``
    narrow it to one quantum, unless the graph comes from a file.
    """
    if not command:
        return ""
    kept: list[str] = []
    without_registry = "run-qbb" in command
    narrow = (
        label is not None
        and not without_registry
        and not {"-g", "--qgraph"}.intersection(map(_option_name, command))
    )
    dropped = _DROPPED | ({"--select-tasks"} if narrow else set())
    words = iter(command)
    for word in words:
        name = _option_name(word)
        if name in dropped and word == name:
            next(words, None)
        elif name not in dropped and name not in _DROPPED_FLAGS:
            kept.append(word)
    if not without_registry:
        # In all other cases finished quanta are always left out.
        kept += ["--extend-run", "--skip-existing", "--clobber-outputs"]
    terms = [where] if where else []
    if narrow and label is not None:
        if "--mock" in command:
            # Tasks are selected before they are mocked; the configuration of a mock names all others.
            label = label.removeprefix(_MOCK_PREFIX)
            kept.append("--skip-init-writes")
        kept += ["--select-tasks", label]
        terms += [data_id_expression(data_id)] if data_id else []
    if terms:
        kept += ["-d", terms[0] if len(terms) == 1 else " AND ".join(f"({term})" for term in terms)]
    return " ".join(map(_quote, kept))


def explain_resume(run: str, collections: Mapping[str, Any] | None = None, *, clobber: bool = False) -> str:
    """Return the sentence that names the options to resume a run.

    ``collections`` are the options about output collections; `None` for a run without the
    registry.  With ``clobber``, outputs of failed quanta have to be replaced.
    """
    if collections is None:
        return f"Finished outputs are in run {run!r}; to resume, repeat the command."
    options = f"--extend-run --skip-existing{' --clobber-outputs' * clobber}"
    replacing = [name for name in ("replace_run", "prune_replaced") if collections[name]]
    instead = f" instead of --{' and --'.join(replacing)}".replace("_", "-") if replacing else ""
    return f"Finished outputs are in run {run!r}; to resume, repeat the command with {options}{instead}."


def _option_name(word: str) -> str:
    """Return the option that a word names, without a value that is attached."""
    return word.partition("=")[0] if word.startswith("--") else word[:2] if word.startswith("-") else word
