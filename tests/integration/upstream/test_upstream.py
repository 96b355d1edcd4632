"""The tests that pipe_base and ctrl_mpexec have for their executor, with Spark in its place."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_ROOT = Path(__file__).resolve().parents[3]
_BUILD = _ROOT / "build" / "upstream"
_FETCH_SECONDS = 900.0

# What the tests of pipe_base read and its source distribution lacks: the least that will do.
_LEFT_OUT = {
    "lsst-pipe-base": {
        "pipelines/pipeline_separable.yaml": """
description: Two tasks in a row.
tasks:
  a:
    class: lsst.pipe.base.tests.no_dimensions.NoDimensionsTestTask
    config: {connections.output: intermediate}
  b:
    class: lsst.pipe.base.tests.no_dimensions.NoDimensionsTestTask
    config: {connections.input: intermediate, key: two, value: 2}
""",
        "data/DM-54057.json": """
{"attempts": [{"metadata": {"calibrateImage:psf_measure_psf": {"scalars": {"spatialFitChi2": null}}}}]}
""",
    }
}
_RUN_SECONDS = 1800.0


def _pip() -> list[str]:
    """A command that is pip, for this interpreter."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    environment = _BUILD / "pip"
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, capture_output=True)
    return [str(python), "-m", "pip"]


def _fetch(name: str) -> Path:
    """Unpack the source distribution of the version of a package that is installed."""
    version = importlib.metadata.version(name)
    stem = f"{name.replace('-', '_')}-{version}"
    if not (_BUILD / stem).is_dir():
        _BUILD.mkdir(parents=True, exist_ok=True)
        command = ["download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(_BUILD)]
        try:
            subprocess.run(
                [*_pip(), *command, f"{name}=={version}"],
                check=True,
                capture_output=True,
                text=True,
                timeout=_FETCH_SECONDS,
            )
        except (OSError, subprocess.SubprocessError) as error:
            lines = str(getattr(error, "stderr", "") or error).strip().splitlines()
            pytest.skip(f"the source distribution of {name} {version} can't be fetched: {lines[-1]}")
        (archive,) = _BUILD.glob(f"{stem}*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(_BUILD, filter="data")
    for file, text in _LEFT_OUT.get(name, {}).items():
        path = _BUILD / stem / "tests" / file
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_text(text)
    return _BUILD / stem


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "file", "everything"),
    [
        ("lsst-pipe-base", "test_mp_graph_executor.py", False),
        ("lsst-pipe-base", "test_separable_pipeline_executor.py", True),
        # The method that runs quanta is replaced, since these tests use no executor of graphs.
        ("lsst-pipe-base", "test_aggregator.py", True),
        ("lsst-ctrl-mpexec", "test_run.py", True),
    ],
)
def test_executor_passes_upstream_tests(package: str, file: str, everything: bool, tmp_path: Path) -> None:
    source = _fetch(package)
    path = [str(_ROOT), str(source / "tests"), os.environ.get("PYTHONPATH", "")]
    names = ("tests.support.zip_seek", "tests.integration.upstream.spark_plug", "no:cacheprovider")
    plugins = [option for name in names for option in ("-p", name)]
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, f"tests/{file}"],
        cwd=source,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "SPARK_PLUG": "all" if everything else "as it is",
            "SPARK_LOCAL_DIRS": str(tmp_path),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_RUN_SECONDS,
    )
    tail = process.stdout[-6000:]
    assert process.returncode == 0, tail
    passed = re.search(r"(\d+) passed", tail)
    assert passed is not None, tail
    assert int(passed[1]) >= 10
    assert "skipped" not in tail
    assert "failed" not in tail
    executed = re.search(r"graphs executed on Spark: (\d+)", tail)
    assert executed is not None, tail
    assert int(executed[1]) >= 5
