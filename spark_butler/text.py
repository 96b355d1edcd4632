"""Errors of other libraries: one line for a person, and policies for code in which anything may raise.

Every process uses this module.
"""

from __future__ import annotations

__all__ = [
    "as_engine_error",
    "best_effort",
    "brief",
    "count",
    "explain_invalid",
    "hide_secrets",
    "human_bytes",
    "translate_errors",
]

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .errors import EngineError, SparkButlerError

if TYPE_CHECKING:
    import pydantic

logger = logging.getLogger(__name__)

_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
_PASSWORD = re.compile(r"(://[^/\s:@]*):[^/\s@]+@")
_JAVA_CAUSE = re.compile(r"^(?:: |Caused by: )(?:[\w.$]+\.)?(\w+): (.+)$", re.MULTILINE)
_HINT = re.compile(r"^\s*(?:\(Background on|\[SQL:|For further info|For more info)", re.MULTILINE)
_PYTHON_ERROR = re.compile(
    r"^(?!org\.|java\.|py4j\.)[\w.]+(?:Error|Exception|Exit|Interrupt)\b.*$", re.MULTILINE
)
_LONGEST = 600


def brief(exc: BaseException) -> str:
    """Shorten an error to one line without secrets.

    Parameters
    ----------
    exc
        The error.

    Returns
    -------
    text
        The first lines of its message.  From an error of Java, the message of
        the first exception without its stack.
    """
    message = _last_of_traceback(str(exc))
    if (cause := _JAVA_CAUSE.search(message)) is not None:
        message = cause[2]
    # Hints of SQLAlchemy, pydantic and pex_config to their own pages and sources help nobody here.
    message = _HINT.split(message, maxsplit=1)[0]
    kept = [line.strip() for line in message.splitlines() if line.strip()]
    text = hide_secrets(" ".join(kept[:4])) or type(exc).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


@contextlib.contextmanager
def best_effort(what: str, *, level: int = logging.WARNING) -> Iterator[None]:
    """Log an error of the block instead of raising it, where the result is not needed.

    Parameters
    ----------
    what
        What failed, as the beginning of a message: ``"Can't write the report"``.
    level
        The level of the message; its traceback is logged at level DEBUG.
    """
    try:
        yield
    except Exception as exc:  # noqa: BLE001  (any library may raise in the block)
        logger.log(level, "%s: %s", what, brief(exc))
        logger.debug("%s.", what, exc_info=True)


@contextlib.contextmanager
def translate_errors(error: type[SparkButlerError], what: str, *, remedy: str = "") -> Iterator[None]:
    """Raise an error of this package for whatever the block raises; keep those that are one already.

    Parameters
    ----------
    error
        The type of the error to raise.
    what
        What failed, as the beginning of a message: ``"Can't read the run's notes"``.
    remedy
        A sentence on what to do, which follows the reason.
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
    """Raise an `~spark_butler.errors.EngineError` for whatever the block raises.

    Parameters
    ----------
    what
        What failed, as the beginning of a message: ``"Can't write the run's notes"``.
    remedy
        A sentence on what to do, which follows the reason.
    """
    return translate_errors(EngineError, what, remedy=remedy)


def explain_invalid(error: pydantic.ValidationError, *, unknown: str, depth: int | None = None) -> str:
    """Say in a line which value is wrong, the first of all.

    Parameters
    ----------
    error
        What pydantic has found.
    unknown
        What to say of a name that there is not, with ``{name!r}`` or
        ``{name}`` in its place.
    depth
        How many parts of the name of a value matter to the user; `None` for
        all.
    """
    first = error.errors(include_url=False)[0]
    name = ".".join(map(str, first["loc"][:depth]))
    if first["type"] == "extra_forbidden":
        return unknown.format(name=name)
    return f"{name} is {first['input']!r}: {first['msg'].removeprefix('Value error, ')}."


def _last_of_traceback(message: str) -> str:
    """Find the error of a worker in the report of Spark, which has stacks of Python and of Java in it."""
    _, is_there, stacks = message.partition("Traceback (most recent call last):")
    if not is_there:
        return message
    errors = _PYTHON_ERROR.findall(stacks)
    return errors[-1] if errors else message


def hide_secrets(text: str) -> str:
    """Blank out passwords and the secret keys of this process's environment.

    Parameters
    ----------
    text
        What is to be shown.
    """
    for name in _SECRET_VARIABLES:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return _PASSWORD.sub(r"\1:***@", text)


def count(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun, in the singular or in the plural.

    Parameters
    ----------
    number
        The number.
    one
        The noun in the singular.
    many
        The noun in the plural; by default with an ``s``.
    """
    return f"{number:d} {one if number == 1 else many or one + 's'}"


def human_bytes(size: float) -> str:
    """Return a size with a decimal unit.

    Parameters
    ----------
    size
        The size in bytes.
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
