"""The parent of Spark's Python workers."""

from __future__ import annotations

import os
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from spark_butler.spark.daemon import remove_dead_sockets


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
