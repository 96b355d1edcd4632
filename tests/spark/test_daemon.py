"""The parent of Spark's Python workers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from spark_butler.spark.daemon import prefer_compiled, remove_dead_sockets
from spark_butler.worker.environment import S3_MODULES


def _bind(folder: Path, *, age: float) -> tuple[Path, socket.socket]:
    path = folder / f".{uuid.uuid4()}.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    os.utime(path, (time.time() - age,) * 2)
    return path, listener


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, since those of sockets end after about 100 characters."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_only_sockets_of_dead_processes_are_removed(folder: Path) -> None:
    alive, listener = _bind(folder, age=60)
    dead, killed = _bind(folder, age=60)
    young, begun = _bind(folder, age=0)
    killed.close()
    begun.close()
    other = folder / ".notes.sock"
    other.touch()
    remove_dead_sockets(folder)
    assert set(folder.iterdir()) == {alive, young, other}
    assert dead not in folder.iterdir()
    listener.setblocking(False)
    try:
        listener.accept()
    except BlockingIOError:
        listener.close()
    else:
        raise AssertionError("a daemon that lives was asked for a worker")


def test_archives_of_the_installed_pyspark_are_imported_last(tmp_path: Path) -> None:
    installed, other = tmp_path / "site-packages", tmp_path / "other"
    for place in (installed, other):
        (place / "pyspark").mkdir(parents=True)
        (place / "pyspark" / "__init__.py").touch()
    code = str(tmp_path / "code")
    archives = {
        place: [str(place / "pyspark" / name) for name in ("python/lib/pyspark.zip", "jars/spark-core.jar")]
        for place in (installed, other)
    }
    places = [*archives[installed], code, str(installed), str(other)]
    prefer_compiled(places)
    assert places == [code, str(installed), str(other), *archives[installed]]
    # Spark was started with another PySpark than the one that is found first.
    places = [*archives[other], code, str(installed), str(other)]
    prefer_compiled(before := list(places))
    assert before == places
    prefer_compiled(without := [*archives[installed], code])
    assert without == [*archives[installed], code]


@pytest.mark.parametrize(
    ("store", "imports_s3"), [("file:///repo/", False), ("s3://profile@bucket/repo/", True)]
)
def test_modules_of_s3_are_imported_only_for_an_s3_store(store: str, imports_s3: bool) -> None:
    # The driver's part of a run, then the daemon's.
    code = """if True:
        import sys, types
        import spark_butler.cli.execute, spark_butler.graph_run, spark_butler.run
        from spark_butler.spark import daemon, session
        print(*sys.modules)
        context = types.SimpleNamespace(environment={})
        session.set_imports(context, ["spark_butler.errors"], sys.argv[1:])
        daemon.os.environ.update(context.environment)
        assert daemon.import_for_workers()
        print(*sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code, store], capture_output=True, text=True, check=True)
    driver, worker = (set(line.split()) for line in done.stdout.splitlines())
    modules = {"botocore.httpsession", "s3fs", *S3_MODULES}
    assert driver.isdisjoint(modules - {"encodings.idna"})
    assert modules <= worker if imports_s3 else worker.isdisjoint(modules)
