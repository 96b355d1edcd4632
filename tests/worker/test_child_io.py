"""The last lines of the log of a process that was killed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def test_log_of_killed_process_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
import ctypes, logging, os, sys
from spark_butler.worker.child_io import LogTail
tail = LogTail()
child = os.fork()
if not child:
    tail.attach()
    logging.getLogger("a").warning("before")
    tail.clear()
    for n in range(20000):
        logging.getLogger("a").warning("line %s of secret-key-of-mine", n)
    ctypes.string_at(0)
os.waitpid(child, 0)
sys.stdout.write(tail.read())
"""
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": "secret-key-of-mine"}
    text = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert "WARNING a: line 19999 of ***" in text
    assert "before" not in text
    assert "Segmentation fault" in text
    assert "string_at" in text
    assert len(text.splitlines()) < 40
