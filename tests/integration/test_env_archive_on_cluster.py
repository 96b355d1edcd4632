"""Process_ccd on a cluster whose machines have no Python, from the packed environment alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyspark
import pytest

from tests.support.clusters import Cluster
from tests.support.night_harness import CONF, Night

pytestmark = pytest.mark.slow

_ROOT = CONF.parent
_TOOLS = ("bash", "basename", "cat", "chmod", "dirname", "gzip", "ls", "readlink", "rm", "sh", "tar", "uname")
_DONE = "it looked "

# Runs in a worker.
_LOOK = f"""
import json, os, shutil, sys
from pathlib import Path
from pyspark.sql import SparkSession

def look(_):
    import lsst.daf.butler.direct_butler, pyspark, sqlite3, ssl
    maps = Path("/proc/self/maps").read_text().splitlines()
    yield {{
        "prefix": sys.prefix,
        "here": os.getcwd(),
        "python": shutil.which("python") or shutil.which("python3"),
        "lsst": os.path.realpath(lsst.daf.butler.direct_butler.__file__),
        "path": sys.path,
        "maps": sorted({{line.split()[-1] for line in maps if "/" in line}}),
    }}

session = SparkSession.builder.getOrCreate()
found = session.sparkContext.parallelize(range(4), 4).mapPartitions(look).collect()
print("{_DONE}" + json.dumps(found))
session.stop()
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed environment, quickly compressed."""
    path = tmp_path_factory.mktemp("archive") / "env.tar.gz"
    command = [sys.executable, str(_ROOT / "tools" / "env_archive.py"), "--level", "1"]
    subprocess.run([*command, "--output", str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def cluster(simulated: Night, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers that find what Spark's scripts need, and no Python."""
    tools = tmp_path_factory.mktemp("tools")
    for name in _TOOLS:
        program = shutil.which(name)
        assert program is not None
        (tools / name).symlink_to(program)
    variables = {"PATH": str(tools), "PYSPARK_PYTHON": "no-python-here", "PYTHONPATH": "", "VIRTUAL_ENV": ""}
    assert shutil.which("python3", path=variables["PATH"]) is None
    with Cluster.start(tmp_path_factory.mktemp("bare"), environment=variables) as cluster:
        yield cluster


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """Folder of the event log, which has to exist."""
    folder = tmp_path / "spark-events"
    folder.mkdir()
    return folder


@pytest.fixture
def submit(archive: Path, cluster: Cluster, events: Path) -> Callable[..., str]:
    """Submit a program with the archive, as an operator does."""
    settings = {
        "spark.eventLog.dir": f"file://{events}",
        "spark.pyspark.driver.python": sys.executable,
        "spark.executor.cores": "1",
        "spark.executor.memory": "1g",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
    }
    command: list[str | Path] = [Path(sys.executable).with_name("spark-submit"), "--master", cluster.address]
    command += ["--properties-file", CONF / "standalone" / "spark-defaults.conf"]
    command += ["--archives", f"{archive}#environment"]
    for name, value in settings.items():
        command += ["--conf", f"{name}={value}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYSPARK_")}
    environment["SPARK_HOME"] = str(Path(pyspark.__file__).parent)

    def run(*arguments: str | Path) -> str:
        process = subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True, timeout=900
        )
        assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-6000:]
        return process.stdout

    return run


def test_workers_use_nothing_but_the_archive(
    submit: Callable[..., str], cluster: Cluster, tmp_path: Path
) -> None:
    program = tmp_path / "look.py"
    program.write_text(_LOOK)
    (line,) = [line for line in submit(program).splitlines() if line.startswith(_DONE)]
    answers = json.loads(line.removeprefix(_DONE))
    assert len({answer["here"] for answer in answers}) == 2
    for answer in answers:
        assert answer["python"] is None
        home = os.path.realpath(answer["prefix"])
        assert Path(home).is_relative_to(os.path.realpath(cluster.folder))
        assert answer["lsst"].startswith(f"{home}/")
        places = {os.path.dirname(name) for name in answer["maps"] if not name.startswith(f"{home}/")}
        assert not [place for place in places if not place.startswith(("/usr/lib", "/lib", "/dev"))]


def test_process_ccd_runs_from_the_archive(
    submit: Callable[..., str], simulated: Night, events: Path
) -> None:
    arguments = ["-b", simulated.repo, "-i", "SimCam/defaults", "-o", "u/archive", "--temporary", "auto"]
    arguments += ["-d", "instrument='SimCam'", "--register-dataset-types"]
    submit(_ROOT / "jobs" / "process_ccd.py", *arguments)
    with simulated.open("u/archive") as butler:
        tables = butler.query_datasets("source", collections="u/archive")
        assert len(tables) == 4
        assert all(len(butler.get(ref)) for ref in tables)
    (run,) = events.iterdir()
    assert run.name.startswith("eventlog_v2_app-")
