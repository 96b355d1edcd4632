"""Spark's daemon is forked from the driver, where that can be."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spark_butler.backends import daemon
from spark_butler.early_start import wants_spark
from spark_butler.fork_server import FORK_SERVER_VARIABLE, ask_fork_server

# A driver: it has imported something and has an open file when it forks.
_DRIVER = """
import json, os, resource, sys, time
from pathlib import Path
from spark_butler.fork_server import ForkServer
resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

marker = "imported by the driver"
file = open(sys.argv[1])

def serve():
    word = sys.stdin.readline().strip()
    found = {
        "word": word, "marker": marker, "folder": os.getcwd(), "path": sys.path[-1], "argv": sys.argv,
        "environment": dict(os.environ), "pid": os.getpid(), "buffered": not sys.stdout.write_through,
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "open": sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                       if os.path.exists(f"/proc/self/fd/{n}")),
    }
    print(json.dumps(found), flush=True)
    if word == "wait":
        time.sleep(60)
    sys.exit(7)

server = ForkServer.start(serve)
print(server.address, flush=True)
sys.stdin.readline()
"""
# What Spark starts.
_ASKER = """
import os, sys
from spark_butler.fork_server import ask_fork_server, wait_for_fork
sys.path.append("/its/own/path")
sys.exit(wait_for_fork(ask_fork_server(os.environ["ADDRESS"])))
"""

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="fork servers are for Linux")


class _Driver:
    """A process with a fork server."""

    def __init__(self, folder: Path):
        self.secret = folder / "secret"
        self.secret.write_text("the driver's")
        (folder / "driver.py").write_text(_DRIVER)
        self._process = subprocess.Popen(
            [sys.executable, folder / "driver.py", self.secret],
            env={**os.environ, "DRIVER": "yes", "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def kill(self) -> None:
        """End it without a chance to say anything."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def driver(tmp_path: Path) -> _Driver:
    return _Driver(tmp_path)


def _ask(address: str, word: str, folder: Path, seed: str = "0") -> subprocess.Popen[str]:
    environment = {"ADDRESS": address, "PATH": os.environ["PATH"], "ASKER": "yes", "PYTHONHASHSEED": seed}
    environment["PYTHONUNBUFFERED"] = "YES"
    asker = subprocess.Popen(
        [sys.executable, "-c", _ASKER, "--an-argument"],
        env=environment,
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert asker.stdin is not None
    asker.stdin.write(f"{word}\n")
    asker.stdin.flush()
    return asker


def _is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _wait_until_dead(pid: int) -> None:
    deadline = time.monotonic() + 10
    while _is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_fork_takes_over_everything_but_what_was_imported(driver: _Driver, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    asker = _ask(driver.address, "hello", folder)
    output, _ = asker.communicate(timeout=30)
    found = json.loads(output)
    assert (found["word"], found["marker"]) == ("hello", "imported by the driver")
    assert (found["folder"], found["path"]) == (str(folder), "/its/own/path")
    assert found["argv"][1:] == ["--an-argument"]
    assert not found["buffered"]
    assert found["files"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 100
    assert found["environment"]["ASKER"] == "yes"
    assert "DRIVER" not in found["environment"]
    assert str(driver.secret) not in found["open"]
    assert asker.returncode == 7
    # It serves again.
    assert _ask(driver.address, "again", folder).communicate(timeout=30)[0]
    driver.kill()


def test_nothing_is_left_of_a_driver_that_was_killed(driver: _Driver) -> None:
    folder = Path(driver.address).parent
    assert folder.stat().st_mode & 0o77 == 0
    driver.kill()
    deadline = time.monotonic() + 10
    while folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert ask_fork_server(driver.address) is None


def test_a_fork_ends_with_the_process_that_has_asked_for_it(driver: _Driver, tmp_path: Path) -> None:
    asker = _ask(driver.address, "wait", tmp_path)
    assert asker.stdout is not None
    found = json.loads(asker.stdout.readline())
    assert _is_alive(found["pid"])
    # As Java ends its children.
    asker.send_signal(signal.SIGTERM)
    _wait_until_dead(found["pid"])
    asker.communicate()
    driver.kill()


def test_one_of_another_python_is_refused(driver: _Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/somewhere/else")
    assert ask_fork_server(driver.address) is None
    driver.kill()


def test_a_daemon_without_a_fork_server_serves_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served = []
    monkeypatch.setattr(daemon, "serve", lambda: served.append(True))
    monkeypatch.setenv(FORK_SERVER_VARIABLE, str(tmp_path / "gone"))
    assert daemon.main() == 0
    assert served == [True]


def test_a_daemon_outlives_its_server(driver: _Driver, tmp_path: Path) -> None:
    asker = _ask(driver.address, "wait", tmp_path)
    assert asker.stdout is not None
    found = json.loads(asker.stdout.readline())
    driver.kill()
    with pytest.raises(subprocess.TimeoutExpired):
        asker.wait(1)
    os.kill(found["pid"], signal.SIGKILL)
    assert asker.wait(10) == 1
    asker.communicate()


def test_a_fork_has_the_hash_seed_that_it_should_have(driver: _Driver, tmp_path: Path) -> None:
    asker = _ask(driver.address, "hello", tmp_path, seed="1")
    output, _ = asker.communicate(timeout=30)
    # Refused; this one has no other way.
    assert (output, asker.returncode) == ("", 1)
    driver.kill()


@pytest.mark.parametrize(
    ("line", "wants"),
    [
        ("-b {repo} -p {file}", True),
        ("--butler-config={repo} --qgraph {file} --register-dataset-types", True),
        ("-b s3://bucket/repo -g s3://bucket/graph.qg", True),
        ("-b {repo} -p {file}#isr,calibrate", True),
        ("-b {repo} -p {file} --help", False),
        ("-b {repo} -p {file} --dry-run", False),
        ("-b {repo} -p {file} --show=graph", False),
        ("-b {repo} -p {file} --backend serial", False),
        ("-b {repo} -p {file} --backend=spark", True),
        ("-b {repo} -p {repo}/missing.yaml", False),
        ("-b {repo}/missing -p {file}", False),
        ("-b {repo}", False),
        ("-@ {file}", False),
        ("", False),
    ],
)
def test_spark_starts_early_only_for_what_looks_like_a_run(line: str, wants: bool, tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.touch()
    assert wants_spark(line.format(repo=tmp_path, file=file).split()) is wants


def test_a_place_that_can_not_be_looked_at_is_not_there() -> None:
    assert not wants_spark(["-b", "x" * 5000, "-p", "/etc/hostname"])


def test_a_job_has_its_own_pipeline(tmp_path: Path) -> None:
    assert wants_spark(["-b", str(tmp_path)], has_pipeline=True)
    assert not wants_spark(["-i", "SimCam/defaults"], has_pipeline=True)


def test_no_early_start_while_words_are_completed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert wants_spark(["-b", str(tmp_path), "-p", str(tmp_path)])
    monkeypatch.setenv("_SPARK_BUTLER_COMPLETE", "bash_complete")
    assert not wants_spark(["-b", str(tmp_path), "-p", str(tmp_path)])
