"""A program that leaves at once leaves nothing undone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_PROGRAM = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from spark_butler.quick_exit import run_program

class Left:
    def __del__(self):
        print("taken down", file=sys.stderr)

left = Left()
pool = ThreadPoolExecutor()
pool.submit(int)

def main():
    atexit.register(print, "handler")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    print("main")
    {end}

run_program(main)
print("never seen")
"""


def _run(end: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(end=end)], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("end", "status"),
    [("pass", 0), ("sys.exit()", 0), ("sys.exit(3)", 3), ("sys.exit(0)", 0), ("sys.exit(130)", 130)],
)
def test_it_ends_as_ever_and_all_is_written(end: str, status: int) -> None:
    process = _run(end)
    assert (process.returncode, process.stdout) == (status, "main\nthread\nhandler\n")
    assert process.stderr == ""


@pytest.mark.parametrize(("end", "word"), [("1 / 0", "ZeroDivisionError"), ("sys.exit('no')", "no")])
def test_an_error_goes_its_usual_way(end: str, word: str) -> None:
    process = _run(end)
    assert process.returncode == 1
    assert word in process.stderr


def test_a_reader_that_has_gone_is_noticed() -> None:
    command = [sys.executable, "-c", _PROGRAM.format(end="pass")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 120


@pytest.mark.parametrize("is_watched", [True, False])
def test_a_profiler_has_the_last_word(is_watched: bool) -> None:
    code = "import os, sys; os._exit = lambda _: print('at once')\n"
    if is_watched:
        code += "sys.setprofile(lambda *_: None)\n"
    process = subprocess.run(
        [sys.executable, "-c", code + _PROGRAM.format(end="pass")], capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 0
    assert ("at once" in process.stdout) is not is_watched
