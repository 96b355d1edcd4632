"""The benchmark counts all processor time, that of processes without a waiting parent included."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from metering import run_metered

# On a busy machine, too, it must end before the processes that were left behind are killed.
_BURN = "import time\nwhile time.process_time() < 0.8: pass\ntime.sleep(1.5)\n"

_SCRIPT = f"""
import os, signal, subprocess, sys, time
if sys.argv[1] == "forgets":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", {_BURN!r}])
if sys.argv[1] == "waits":
    child.wait()
elif sys.argv[1] == "forgets":
    try:
        while True:
            os.kill(child.pid, 0)
            time.sleep(0.2)
    except ProcessLookupError:
        pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["waits", "forgets", "leaves"])
def test_time_of_a_child_is_counted_once(kind: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    usage = run_metered(
        [sys.executable, "-S", str(script), kind], environment=dict(os.environ), folder=tmp_path
    )
    assert usage.status == 0, usage.output
    assert 0.75 < usage.cpu < 1.5
