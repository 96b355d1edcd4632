"""A process that has imported everything and forks drivers, to be killed: each line on stdin is a request."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any


def _lay_mine(place: str, number: int, when: str) -> None:
    """Make a call of a function kill this process, before or after it does its work."""
    module_name, _, path = place.partition(":")
    *classes, name = path.split(".")
    owner: Any = importlib.import_module(module_name)
    for each in classes:
        owner = getattr(owner, each)
    function: Callable[..., Any] = getattr(owner, name)
    n_left = number

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_left
        n_left -= 1
        if n_left == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if n_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, wrapper)


def _run(request: dict[str, Any]) -> None:
    """Run the command in this process, and leave it."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if request.get("mine"):
        _lay_mine(*request["mine"])
    from spark_butler.cli.run import make_run_command

    status = 1
    try:
        make_run_command("run")(request["arguments"], prog_name="run")
    except SystemExit as exc:
        status = exc.code if isinstance(exc.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _answer(word: object) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main() -> None:
    """Serve requests until stdin ends."""
    importlib.import_module("spark_butler.cli.run")
    importlib.import_module("tests.support.temporaries_tasks")
    _answer("ready")
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            _answer(os.waitstatus_to_exitcode(status))
            continue
        child = os.fork()
        if child == 0:
            _run(request)
        _answer(child)


if __name__ == "__main__":
    main()
