"""Modules that are imported before a fork, and those that must not be."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from spark_butler.worker.state import NOT_PRELOADED_VARIABLE, Preloader

_THREADED = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"

# One that starts a thread, one that needs it, and one that has nothing to do with them.
_MODULES = {"pl_threaded": _THREADED, "pl_reader": "import pl_threaded\n", "pl_plain": "X = 1\n"}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of modules that can be imported, none of which is yet."""
    for name, code in _MODULES.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return ["pl_reader", "pl_threaded", "pl_plain"]


def _ask(tried: list[list[str]]) -> Callable[[Callable[[], list[str]]], list[str] | None]:
    """Make a stand-in for a forked process: modules that need one with a thread start a thread."""

    def ask(question: Callable[[], list[str]]) -> list[str] | None:
        del question
        return tried.pop(0)

    return ask


def test_modules_with_threads_are_left_to_children(
    modules: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "pl_plain", raising=False)
    # Threads of other tests may end meanwhile.
    preloader, threads = Preloader(), set(threading.enumerate())
    assert not preloader.preload(modules, _ask([["pl_reader"], ["pl_threaded"], []]))
    assert threads.issuperset(threading.enumerate())
    assert sys.modules.keys().isdisjoint({"pl_reader", "pl_threaded"})
    assert "pl_plain" in sys.modules
    named = [record.message.split()[1] for record in caplog.records if record.levelno == logging.WARNING]
    assert named == ["pl_reader", "pl_threaded"]
    # Nothing is asked, imported or said again.
    assert not preloader.preload(modules, _ask([]))
    assert len(caplog.records) == len(named)


def test_process_that_dies_of_an_import_leaves_all_to_children(modules: list[str]) -> None:
    preloader = Preloader()
    assert not preloader.preload(modules[:2], lambda question: None)
    assert sys.modules.keys().isdisjoint(modules[:2])


def test_modules_that_start_threads_are_found(modules: list[str]) -> None:
    code = (
        "from spark_butler.worker.state import Preloader; "
        f"print(*Preloader().import_modules({modules!r}), *Preloader().import_modules({modules!r}))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["pl_reader"]


def test_daemon_starts_anew_without_modules_that_start_threads(modules: list[str]) -> None:
    code = (
        "import sys, threading; import pyspark.daemon; from spark_butler.spark import daemon; "
        "pyspark.daemon.manager = lambda: print(threading.active_count(), "
        f"*[name for name in {modules!r} if name in sys.modules]); "
        "daemon.serve()"
    )
    environment = {**os.environ, "SPARK_BUTLER_IMPORTS": "pl_reader,pl_plain"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == ["1", "pl_plain"]
    assert done.stderr.count("pl_reader starts threads") == 1
    assert NOT_PRELOADED_VARIABLE not in os.environ
