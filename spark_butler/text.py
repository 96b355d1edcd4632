"""Errors of other libraries, as one line for a person."""

from __future__ import annotations

__all__ = ["brief", "explain_invalid", "hide_secrets"]

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pydantic

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
