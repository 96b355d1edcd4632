"""The demo as a user runs it, but smaller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = [pytest.mark.jvm, pytest.mark.slow]

_JOB = Path(__file__).resolve().parents[2] / "jobs" / "demo.py"
_SMALL = ("--visits", "1", "--detectors", "2", "--size", "256")


def _environment() -> dict[str, str]:
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    foreign = ("AWS_", "S3_")
    return {k: v for k, v in os.environ.items() if not k.startswith(foreign)} | {"PATH": path}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Directory of a finished demo, and what it printed."""
    directory = tmp_path_factory.mktemp("demo")
    return directory, _run(directory)


def _run(directory: Path) -> str:
    command = [sys.executable, str(_JOB), *_SMALL, "--directory", str(directory)]
    process = subprocess.run(
        command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


def test_every_quantum_succeeds(demo: tuple[Path, str]) -> None:
    assert "all of 7 quanta succeeded" in demo[1]


def test_pictures_are_there_and_named(demo: tuple[Path, str]) -> None:
    directory, output = demo
    pictures = sorted(directory.rglob("*.png"))
    assert len(pictures) >= 2
    for picture in pictures:
        assert picture.name in output
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 20_000


def test_report_is_there_and_named(demo: tuple[Path, str]) -> None:
    directory, output = demo
    assert "report.html, for a browser" in output
    page = (directory / "report.html").read_text()
    for words in ("Succeeded", "of 7 quanta done", "local["):
        assert words in page
    assert "No requests of quanta to an S3 store" not in page


def test_second_demo_keeps_the_night_and_its_repository_serves_butler_commands(
    demo: tuple[Path, str],
) -> None:
    directory, _ = demo
    frames = {path: path.stat().st_mtime_ns for path in (directory / "night" / "raw").glob("*.fits")}
    output = _run(directory)
    assert "simulated and ingested already" in output
    assert frames == {path: path.stat().st_mtime_ns for path in (directory / "night" / "raw").glob("*.fits")}
    _check_served(directory)


def _check_served(directory: Path) -> None:
    command = [sys.executable, str(_JOB), *_SMALL, "--directory", str(directory), "--serve"]
    with subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = ""
            while "query-collections" not in line:
                line = server.stdout.readline()
                assert line, "the server ended"
            settings = directory / "s3.env"
            assert settings.stat().st_mode & 0o077 == 0
            (directory / "out").mkdir()
            script = f'. "{settings}"; butler retrieve-artifacts "{directory}/repo" "{directory}/out" \
                --collections u/demo/process_ccd -d source --find-first; \
                butler query-collections "{directory}/repo" --chains=flatten'
            shown = subprocess.run(
                ["bash", "-ec", script], env=_environment(), capture_output=True, text=True
            )
            assert shown.returncode == 0, shown.stderr
            assert len(list((directory / "out").rglob("source_*"))) == 2
            assert shown.stdout.count("u/demo/process_ccd/2") == 2
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 0
    assert not settings.exists()


def test_serving_before_the_first_demo_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(_JOB), "--serve", "--directory", str(tmp_path)]
    process = subprocess.run(command, env=_environment(), capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr.startswith("Error: There is no repository in ")
    assert process.stderr.count("\n") == 1
