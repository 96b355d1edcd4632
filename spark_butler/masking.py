"""Secrets in texts: passwords, keys and tokens become ``***``.  Every process masks a text that leaves it."""

from __future__ import annotations

__all__ = ["hide_secrets", "mask_logs"]

import base64
import functools
import json
import logging
import os
import re
import traceback
import urllib.parse
from pathlib import Path
from typing import Any

_VARIABLES = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "LSST_DB_AUTH_CREDENTIALS"),
    *("LSST_HTTP_AUTH_BEARER_TOKEN", "PGPASSWORD", "SPARK_AUTH_SECRET"),
    *("BUTLER_RUBIN_ACCESS_TOKEN", "ACCESS_TOKEN", "CADC_TOKEN"),
)
_ADDRESSES = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
_PROFILES = "LSST_RESOURCES_S3_PROFILE_"
_FILES = {
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
    "AWS_CONFIG_FILE": "~/.aws/config",
    "LSST_DB_AUTH": "~/.lsst/db-auth.yaml",
}
_IN_FILES = re.compile(
    r"""^[\s{,-]*["']?(?:aws_secret_access_key|aws_session_token|password)["']?\s*[=:]\s*(.+?)\s*$""",
    re.MULTILINE | re.IGNORECASE,
)
# Shorter ones could be parts of ordinary words.
_SHORTEST = 6

_KEYS = "(?:account|api|private|encryption)[._-]?key"
_NAME = "|".join(
    (
        rf"[\w.-]*(?:password|passwd|secret(?:[._-]?access)?(?:[._-]?key)?|{_KEYS})",
        r"[\w.-]*(?:session|security|access|refresh|oauth|bearer)[._-]?token",
        # Settings that Spark's own `spark.redaction.regex` finds, and keys of Azure's accounts.
        rf"(?:-D)?(?:spark|fs)\.[\w.-]*(?:secret|password|token|access[._-]?key|{_KEYS})[\w.-]*",
    )
)
_QUERY = r"x-amz-(?:signature|security-token|credential)|signature|sig|token|access_token"
_PATTERNS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # The password of an address may have slashes; what follows a host is its port.
        (r"(://[^\s/:@'\"]*):(?!\d{1,5}(?:[/?#]|$))[^\s'\"<>]+@(?=[\w\[])", r"\1:***@"),
        (r"(https?://)[^\s/:@'\"]{8,}@", r"\1***@"),
        (rf"(?i)([?&](?:{_QUERY})=)[^&\s'\"<>]+", r"\1***"),
        (r"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?)[^\"'\n]+", r"\1***"),
        (r"(\bBearer\s+)[\w.~+/=-]{8,}", r"\1***"),
        (r"(\bSignature=)[0-9a-f]{8,}", r"\1***"),
        (rf"(?i)((?<![\w.-])(?:{_NAME})[\"']?\s*=\s*)(?:\"[^\"]*\"|'[^']*'|[^\s'\"&;,]+)", r"\1***"),
        (rf"(?i)([\"'](?:{_NAME})[\"']\s*:\s*)(?:\"[^\"]*\"|'[^']*')", r'\1"***"'),
    )
)


def hide_secrets(text: str) -> str:
    """Return a text without passwords, tokens, signatures and other secrets that this process knows."""
    variables = tuple(
        (name, value)
        for name, value in os.environ.items()
        if name in _VARIABLES or name in _ADDRESSES or name.startswith(_PROFILES)
    )
    known = _known(variables, _states())
    if known is not None:
        text = known.sub("***", text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def mask_logs() -> None:
    """Mask secrets in all log messages of this process from now on."""
    factory = logging.getLogRecordFactory()
    if getattr(factory, "masks_secrets", False):
        return

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            # The handler reports it.
            return record
        if (masked := hide_secrets(message)) != message:
            record.msg, record.args = masked, ()
        if record.exc_info and record.exc_info[0] is not None:
            text = "".join(traceback.format_exception(*record.exc_info))
            if (masked := hide_secrets(text)) != text:
                record.msg, record.args = f"{record.getMessage()}\n{masked.rstrip()}", ()
                record.exc_info = None
        return record

    make.masks_secrets = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make)


def _states() -> tuple[tuple[str, int], ...]:
    """Return the credentials files with their modification times."""
    found = []
    for name, default in _FILES.items():
        path = os.path.expanduser(os.environ.get(name, default))
        try:
            found.append((path, os.stat(path).st_mtime_ns))
        except OSError:
            continue
    return tuple(found)


@functools.lru_cache(maxsize=4)
def _known(
    variables: tuple[tuple[str, str], ...], files: tuple[tuple[str, int], ...]
) -> re.Pattern[str] | None:
    """Return a pattern of all secrets in variables and files, in plain, quoted, escaped and encoded form."""
    secrets = set()
    for name, value in variables:
        if name in _VARIABLES:
            secrets.add(value)
        if name == "LSST_DB_AUTH_CREDENTIALS":
            secrets.update(re.findall(r'"password"\s*:\s*"((?:[^"\\]|\\.)*)"', value))
        elif (password := _password_of(value)) is not None:
            secrets.update((password, urllib.parse.unquote(password)))
    for path, _ in files:
        try:
            secrets.update(each.strip("\"'") for each in _IN_FILES.findall(Path(path).read_text()))
        except (OSError, UnicodeDecodeError):
            continue
    forms = {
        form
        for secret in secrets
        if len(secret) >= _SHORTEST
        for form in (
            secret,
            urllib.parse.quote(secret, safe=""),
            urllib.parse.quote(secret),
            json.dumps(secret)[1:-1],
            base64.b64encode(secret.encode()).decode(),
        )
    }
    if not forms:
        return None
    # A secret that is a word is not hidden inside of longer words.
    longest_first = sorted(forms, key=len, reverse=True)
    return re.compile(
        "|".join(rf"\b{form}\b" if form.isalpha() else re.escape(form) for form in longest_first)
    )


def _password_of(address: str) -> str | None:
    """Return the password in an address; `None` if there is none."""
    authority, at, _ = address.partition("://")[2].rpartition("@")
    return authority.partition(":")[2] if at else None
