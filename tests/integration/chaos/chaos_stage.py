"""The stage of the chaos runs: an object store, a Spark cluster, and disks that can be full."""

from __future__ import annotations

__all__ = ["MARKER", "Disk", "Stage"]

import contextlib
import dataclasses
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from spark_butler.spark.java import find_java_home
from tests.integration.chaos.chaos_scenarios import ROOT
from tests.integration.chaos.chaos_servers import (
    CephS3,
    KillableS3,
    PostgresRegistry,
    Registry,
    SqliteRegistry,
)
from tests.support.clusters import Cluster

MARKER = "SPARK_BUTLER_CHAOS"
"""Environment variable of all processes of the suite, by which those that are left over can be found."""

# Where less than 1 GiB is free, temporaries take another way than Spark's shuffle.
_DISK_MEGABYTES = 1300
_OF_JVM = re.compile(
    r"(tmp\w{8}$|faulthandler-|liblz4-java-|libzstd-|snappy-|libnetty|spark-|blockmgr-|pyspark-|artifacts-|\.).*"
)


@dataclasses.dataclass
class Disk:
    """A small disk for Spark's local directories."""

    path: Path
    """Where it is."""

    is_small: bool
    """Whether it can be filled without filling anything else."""

    @classmethod
    @contextlib.contextmanager
    def make(cls, path: Path) -> Iterator[Disk]:
        """Mount a small file system, where this user may."""
        path.mkdir(parents=True, exist_ok=True)
        options = f"size={_DISK_MEGABYTES}m"
        command = ["mount", "-t", "tmpfs", "-o", options, "spark-butler-chaos", str(path)]
        try:
            mounted = subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            mounted = False
        try:
            yield cls(path, mounted)
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", str(path)], check=False)

    def fill(self) -> None:
        """Leave no room on it."""
        assert self.is_small
        with contextlib.suppress(OSError), (self.path / "filler").open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(self.path).free)
            while True:
                file.write(bytes(2**16))

    def free(self) -> None:
        """Make room again."""
        (self.path / "filler").unlink(missing_ok=True)


@dataclasses.dataclass
class Stage:
    """All that runs have in common."""

    folder: Path
    """Where everything about the suite is."""

    server: KillableS3
    """The object store."""

    registry: Registry
    """Where the registries are."""

    cluster: Cluster
    """The Spark cluster."""

    disks: list[Disk]
    """Spark's local directories, one for each worker."""

    mark: str
    """Value of `MARKER` in all processes."""

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path, *, store: str = "seaweedfs", registry: str = "sqlite") -> Iterator[Stage]:
        """Start the object store, the registry's server, if it has one, and the cluster."""
        mark = secrets.token_hex(8)
        place = folder / "cluster"
        shutil.rmtree(place, ignore_errors=True)
        (place / "tmp").mkdir(parents=True)
        with contextlib.ExitStack() as stack:
            server = CephS3(folder / "ceph") if store == "ceph" else KillableS3(folder / "s3")
            stack.enter_context(stack.enter_context(server).activated())
            registries: Registry = SqliteRegistry()
            if registry == "postgresql":
                registries = stack.enter_context(PostgresRegistry.open(folder / "postgresql"))
            disks = [stack.enter_context(Disk.make(place / f"disk{n}")) for n in range(2)]
            environment = {
                MARKER: mark,
                "PYTHONPATH": python_path(),
                "TMPDIR": str(place / "tmp"),
                "SPARK_DAEMON_JAVA_OPTS": java_options(place / "tmp"),
            }
            cluster = stack.enter_context(
                Cluster.start(
                    place, memory="1g", environment=environment, local_dirs=[disk.path for disk in disks]
                )
            )
            yield cls(folder, server, registries, cluster, disks, mark)

    @property
    def temporary(self) -> Path:
        """Folder for temporary files of the cluster's processes."""
        return self.cluster.folder / "tmp"

    def environment(self) -> dict[str, str]:
        """Environment of drivers, but for what differs from run to run."""
        return {
            **os.environ,
            MARKER: self.mark,
            "PYTHONPATH": python_path(),
            "JAVA_HOME": str(find_java_home()),
            "SPARK_LOCAL_IP": "127.0.0.1",
        }

    def remove_added_workers(self) -> None:
        """Give the cluster its first workers back."""
        for worker in self.cluster.workers[len(self.disks) :]:
            self.cluster.remove_worker(worker)

    def restart_server(self) -> None:
        """Start the object store again on the same data, with the same credentials."""
        self.server.restart()
        os.environ.update(self.server.environment())

    def processes(self) -> list[psutil.Process]:
        """All processes that bear the suite's mark, but for the cluster itself."""
        wanted = f"{MARKER}={self.mark}".encode()
        own = {worker.pid for worker in self.cluster.workers}
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if wanted in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                    words = " ".join(process.cmdline())
                    if process.pid not in own and "org.apache.spark.deploy.master.Master" not in words:
                        found.append(process)
        return found

    def wait_until_quiet(self, seconds: float) -> list[str]:
        """Wait until no process of a run is left; describe those that stay, and end them."""
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        texts = []
        for process in left:
            with contextlib.suppress(psutil.Error):
                texts.append(f"process {process.pid} is left: {' '.join(process.cmdline())[:150]}")
                process.send_signal(signal.SIGKILL)
        return texts

    def sweep(self, folders: Sequence[Path], *, jvm_died: bool, daemon_died: bool) -> list[str]:
        """Remove what runs have left in temporary folders; name what should not have been there.

        Parameters
        ----------
        folders
            Folders for temporary files of the driver.
        jvm_died
            Whether a JVM was killed, which then can't remove what it has made
            for itself.
        daemon_died
            Whether a daemon was killed, whose socket only the next one removes.
        """
        texts = []
        for disk in self.disks:
            disk.free()
        for folder in (*folders, self.temporary, *(disk.path for disk in self.disks)):
            for path in folder.iterdir():
                # Spark's worker removes the folders of executors that have died.
                excused = (jvm_died and _OF_JVM.match(path.name)) or (daemon_died and path.is_socket())
                if not excused and not _is_empty_folder(path):
                    texts.append(f"temporary file left: {path}")
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self.cluster.folder.glob("work*/app-*"):
            shutil.rmtree(path, ignore_errors=True)
        return texts


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(each for each in path.rglob("*") if not each.is_dir())


def python_path() -> str:
    """Where processes find the package and the tasks."""
    return str(ROOT)


def java_options(temporary: Path) -> str:
    """Options of a JVM that starts quickly and has a folder for temporary files."""
    return f"-Djava.io.tmpdir={temporary} -XX:+UseSerialGC -XX:-UsePerfData"
