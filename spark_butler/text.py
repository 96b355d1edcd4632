"""Texts of numbers, tables and errors; contexts that handle any error.  Every process uses this module."""

from __future__ import annotations

__all__ = [
    "align_rows",
    "as_engine_error",
    "best_effort",
    "brief",
    "cell_name",
    "describe_expected",
    "explain_invalid",
    "format_bytes",
    "format_count",
    "format_data_id",
    "format_seconds",
    "suggest",
    "translate_errors",
]

import contextlib
import difflib
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import EngineError, SparkButlerError
from .masking import hide_secrets

if TYPE_CHECKING:
    import pydantic

logger = logging.getLogger(__name__)

_JAVA_CAUSE = re.compile(r"^(?:: |Caused by: )(?:[\w.$]+\.)?(\w+): (.+)$", re.MULTILINE)
_HINT = re.compile(r"^\s*(?:\(Background on|\[SQL:|For further info|For more info)", re.MULTILINE)
# urllib3 says it twice.
_INCOMPLETE = re.compile(
    r"(?:\('Connection broken: )?IncompleteRead\((\d+) bytes read, (\d+) more expected\)(?:', .*\))?"
)
_PYTHON_ERROR = re.compile(
    r"^(?!org\.|java\.|py4j\.)[\w.]+(?:Error|Exception|Exit|Interrupt)\b.*$", re.MULTILINE
)
_LONGEST = 600
_MOST_NAMES = 20

# What pydantic expects, by its type of error.
_EXPECTED = {
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less",
    "literal_error": "{expected}",
    "finite_number": "a finite number",
    "string_type": "a text",
    "string_too_short": "{min_length} or more characters",
    "string_too_long": "at most {max_length} characters",
    "too_short": "at least {min_length}",
    "too_long": "at most {max_length}",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "dataclass_type"), "a mapping"),
}


def brief(exc: BaseException) -> str:
    """Return an error as one line without secrets; of Java, the message of its first error."""
    message = _last_of_traceback(str(exc))
    if (cause := _JAVA_CAUSE.search(message)) is not None:
        message = cause[2]
    # Hints of SQLAlchemy, pydantic and pex_config to their own pages and sources are of no help here.
    message = _HINT.split(message, maxsplit=1)[0]
    message = _INCOMPLETE.sub(lambda m: f"only {m[1]} of {int(m[1]) + int(m[2])} bytes arrived", message)
    kept = [line.strip() for line in message.splitlines() if line.strip()]
    text = hide_secrets(" ".join(kept[:4])) or type(exc).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


@contextlib.contextmanager
def best_effort(what: str, *, level: int = logging.WARNING) -> Iterator[None]:
    """Log an error of the block instead of raising it, where the result is not needed.

    ``what`` failed, as the beginning of a message: ``"Can't write the report"``.  The traceback is logged at
    level DEBUG.
    """
    try:
        yield
    except Exception as exc:  # any library may raise in the block
        logger.log(level, "%s: %s", what, brief(exc))
        logger.debug("%s.", what, exc_info=True)


@contextlib.contextmanager
def translate_errors(error: type[SparkButlerError], what: str, *, remedy: str = "") -> Iterator[None]:
    """Raise an error of this package for any error of the block; errors of this package pass unchanged.

    ``what`` failed, as the beginning of a message: ``"Can't read the run's notes"``.
    """
    try:
        yield
    except SparkButlerError:
        raise
    except Exception as exc:
        logger.debug("%s.", what, exc_info=True)
        text = f"{what}: {brief(exc)}"
        raise error(f"{text.rstrip('.')}. {remedy}" if remedy else text) from exc


def as_engine_error(what: str, *, remedy: str = "") -> contextlib.AbstractContextManager[None]:
    """Raise an `~spark_butler.errors.EngineError` for any error of the block, as `translate_errors`."""
    return translate_errors(EngineError, what, remedy=remedy)


def explain_invalid(
    error: pydantic.ValidationError, *, known: Iterable[str], what: str = "option", depth: int | None = None
) -> str:
    """Return a line about the first wrong value; ``depth`` parts of its name are kept, by default all."""
    first = error.errors(include_url=False)[0]
    name = ".".join(map(str, first["loc"][:depth]))
    if first["type"] == "extra_forbidden":
        return f"{name!r} is not a known {what}; {suggest(str(first['loc'][-1]), known)}"
    return f"{name} is {first['input']!r}; {describe_expected(first)}."


def describe_expected(item: Mapping[str, Any]) -> str:
    """Return in words what pydantic expected for a value, by an item of `pydantic.ValidationError.errors`."""
    if (expected := _EXPECTED.get(item["type"])) is not None:
        return f"expected {expected.format(**item.get('ctx', {}))}"
    return str(item["msg"]).removeprefix("Value error, ")


def suggest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return ``did you mean ...?`` with the known names that are similar to an unknown name.

    If none is near, return ``otherwise``; by default it lists the known names.
    """
    names = sorted(set(known))
    lower = {each.lower(): each for each in reversed(names)}
    matches = difflib.get_close_matches(name.lower(), lower, n=2)
    # If one name is much nearer than the next, only this one is suggested.
    scores = [difflib.SequenceMatcher(None, each, name.lower()).ratio() for each in matches]
    if near := [
        repr(lower[each]) for each, score in zip(matches, scores, strict=True) if score > scores[0] - 0.1
    ]:
        return f"did you mean {' or '.join(near)}?"
    if otherwise or not names:
        return otherwise or "there is none."
    return f"known are {', '.join(names[:_MOST_NAMES])}{', ...' if len(names) > _MOST_NAMES else '.'}"


def _last_of_traceback(message: str) -> str:
    """Return the error of a worker from Spark's report, which holds stacks of Python and of Java."""
    _, is_there, stacks = message.partition("Traceback (most recent call last):")
    if not is_there:
        return message
    errors = _PYTHON_ERROR.findall(stacks)
    return errors[-1] if errors else message


def format_seconds(seconds: float) -> str:
    """Return a duration as text."""
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def format_bytes(n_bytes: float) -> str:
    """Return a number of bytes as text."""
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.3g} {unit}"


def format_data_id(data_id: Mapping[str, object]) -> str:
    """Return a data ID as text."""
    return ", ".join(f"{name} {value}" for name, value in data_id.items())


def format_count(number: int, one: str, many: str | None = None) -> str:
    """Return a number and its noun, in the singular or the plural, by default the singular with an *s*."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def cell_name(file: str) -> str | None:
    """Return IPython's name of the cell that a file stands for, ``Cell In[3]``; `None` for other code."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    named = getattr(getattr(shell, "compile", None), "format_code_name", lambda file: None)(file)
    return " ".join(named) if named else None


def align_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table of plain text, indented; columns after the first one are flush right.

    There is at least one row, the heading.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append(f"  {'  '.join([first.ljust(widths[0]), *cells])}")
    return lines
