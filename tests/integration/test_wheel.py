"""The sdist and the wheel: built, installed into an empty environment, and the demo run from there alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def _uv() -> str:
    """The program uv, of `make install` or of this machine."""
    found = shutil.which("uv", path=os.pathsep.join([str(_ROOT / ".uv" / "bin"), os.environ["PATH"]]))
    if found is None:
        pytest.skip("uv is not installed")
    return found


def _call(*command: str | Path, cwd: Path) -> str:
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "SPARK_HOME")
    }
    process = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    _call(_uv(), "build", "--python", sys.executable, "--out-dir", folder, _ROOT, cwd=folder)
    return folder


def test_distributions_hold_the_package_and_its_data(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("py.typed", "demo/process_ccd.yaml", "report/templates/report.html.j2", "bps/service.py"):
        assert f"spark_butler/{name}" in names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    assert files["spark_butler/demo/process_ccd.yaml"].isreg()
    assert "LICENSE" in files


@pytest.mark.jvm
@pytest.mark.timeout(1800)
def test_demo_runs_from_the_wheel_alone(built: Path, tmp_path: Path) -> None:
    """In a folder without the sources; the environment has only the wheel and what it asks for."""
    (wheel,) = built.glob("*.whl")
    environment = tmp_path / "environment"
    _call(_uv(), "venv", "--python", sys.executable, environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    _call(_uv(), "pip", "install", "--python", python, f"{wheel}[demo]", cwd=tmp_path)
    program = environment / "bin" / "spark-butler"
    assert "spark-butler" in _call(program, "--version", cwd=tmp_path)
    output = _call(
        program, "demo", "run", "data", "--visits", "1", "--detectors", "1", "--size", "512", cwd=tmp_path
    )
    assert "all of 4 quanta succeeded" in output
    assert (tmp_path / "data" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "data" / "detector.png").read_bytes().startswith(b"\x89PNG")
