"""Logs as JSON lines with task label and data ID, for collectors of logs.  Runs in all processes."""

from __future__ import annotations

__all__ = ["LOG_JSON_HELP", "JsonFormatter", "start_json_log"]

import ast
import datetime
import json
import logging
import re
import socket
from typing import Any

LOG_JSON_HELP = "Log to standard error as JSON lines with task label and data ID, also in workers."
"""Help of the option ``--log-json``."""

_VALUE = re.compile(r"(\w+): ('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|-?\d+)")


class JsonFormatter(logging.Formatter):
    """Formatter of records as JSON objects, one a line.

    Keys are ``time`` (UTC), ``level``, ``logger``, ``message``, ``host``, ``process``; in a quantum
    ``task`` and ``data_id``; ``exception`` where there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        content: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "host": socket.gethostname(),
            "process": record.process,
        }
        # As pipe_base sets it while a quantum runs: LABEL:{DIMENSION: VALUE, ...}.
        label, _, data_id = str(getattr(record, "MDC", {}).get("LABEL", "")).partition(":")
        if label:
            content["task"] = label
            content["data_id"] = {name: ast.literal_eval(value) for name, value in _VALUE.findall(data_id)}
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content)


def start_json_log() -> None:
    """Write the log of this process to standard error as JSON lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.getLogger().addHandler(handler)
