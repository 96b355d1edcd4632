"""A standalone Spark cluster from the package that pip installs, on the loopback interface."""

from __future__ import annotations

__all__ = ["Cluster", "stop_tree"]

import contextlib
import dataclasses
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import pyspark

from spark_butler.demo.s3server import find_free_ports, wait_until
from spark_butler.spark.java import find_java_home


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def stop_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours and all that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.wait()


@dataclasses.dataclass
class Cluster:
    """A running cluster."""

    address: str
    workers: list[subprocess.Popen[bytes]]
    folder: Path
    launch: Callable[[], subprocess.Popen[bytes]]
    """Starts a worker."""

    @classmethod
    @contextlib.contextmanager
    def start(
        cls,
        folder: Path,
        *,
        n_workers: int = 2,
        memory: str = "4g",
        environment: Mapping[str, str] | None = None,
        local_dirs: Sequence[Path] = (),
        several_hosts: bool = False,
    ) -> Iterator[Cluster]:
        """Start a master and workers; their end is certain.

        ``local_dirs`` are Spark's local directories, one for each worker.
        With ``several_hosts`` each worker has a loopback address of its own.
        """
        with contextlib.ExitStack() as stack:
            (port,) = find_free_ports(1)
            variables = dict(environment or {})
            _launch(stack, folder / "master", variables, "master.Master", *_place(port))
            _wait_for(lambda: _answers(port), folder)
            numbers = itertools.count()

            def launch() -> subprocess.Popen[bytes]:
                n = next(numbers)
                local_dir = local_dirs[n % len(local_dirs)] if local_dirs else folder / f"worker{n}-local"
                return _launch(
                    stack,
                    folder / f"worker{n}",
                    {**variables, "SPARK_LOCAL_DIRS": str(local_dir)},
                    "worker.Worker",
                    *("--host", f"127.0.0.{1 + n * several_hosts}", "--cores", "1", "--memory", memory),
                    *("--work-dir", str(folder / f"work{n}"), f"spark://127.0.0.1:{port}"),
                )

            workers = [launch() for _ in range(n_workers)]
            logs = [folder / f"worker{n}" for n in range(n_workers)]
            _wait_for(lambda: all("Successfully registered" in log.read_text() for log in logs), folder)
            yield cls(f"spark://127.0.0.1:{port}", workers, folder, launch)

    def add_worker(self) -> None:
        """Start another worker, and don't wait for it."""
        self.workers.append(self.launch())

    def remove_worker(self, worker: subprocess.Popen[bytes]) -> None:
        """End a worker with its executors."""
        stop_tree(worker)
        self.workers.remove(worker)

    @property
    def executors(self) -> list[psutil.Process]:
        """The executors that run now."""
        found = []
        for worker in self.workers:
            for child in psutil.Process(worker.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "CoarseGrainedExecutorBackend" in " ".join(child.cmdline()):
                        found.append(child)
        return found


def _place(port: int) -> list[str]:
    return ["--host", "127.0.0.1", "--port", str(port)]


def _launch(
    stack: contextlib.ExitStack, log: Path, variables: Mapping[str, str], name: str, *arguments: str
) -> subprocess.Popen[bytes]:
    home = Path(pyspark.__file__).parent
    environment = {
        **os.environ,
        "SPARK_HOME": str(home),
        "JAVA_HOME": str(find_java_home()),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_DAEMON_MEMORY": "256m",
        "PYSPARK_PYTHON": sys.executable,
        **variables,
    }
    environment.pop("PYSPARK_GATEWAY_PORT", None)
    command = [
        str(home / "bin" / "spark-class"),
        f"org.apache.spark.deploy.{name}",
        "--webui-port",
        "0",
        *arguments,
    ]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    stack.callback(stop_tree, process)
    return process


def _wait_for(condition: Callable[[], bool], folder: Path) -> None:
    if not wait_until(condition, 180):
        raise TimeoutError("\n".join(path.read_text()[-2000:] for path in folder.iterdir() if path.is_file()))
