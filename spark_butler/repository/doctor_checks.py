"""Checks of ``spark-butler doctor``: registry, stores and machines.  Runs in the driver and in workers."""

from __future__ import annotations

__all__ = ["ProcessFacts", "compare_processes", "describe_process", "diagnose_machine", "diagnose_repository"]

import dataclasses
import fcntl
import importlib.metadata
import os
import pickle
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import cloudpickle
from lsst.daf.butler import Butler
from lsst.resources import ResourcePath

from ..errors import UserError
from ..signals_and_locks import try_lock
from ..text import brief, format_bytes, format_seconds
from .checks import check_repository
from .store_checks import Finding, diagnose_store

_LEAST_FREE_BYTES = 2e9
_MOST_SOCKET_BYTES = 103
_SPARKS_SOCKET_BYTES = 43
_PACKAGES = (
    *("astropy", "boto3", "cloudpickle", "lsst-ctrl-mpexec", "lsst-daf-butler", "lsst-images"),
    *("lsst-pipe-base", "lsst-resources", "numpy", "pyarrow", "pyspark", "spark-butler"),
)


@dataclasses.dataclass(frozen=True)
class ProcessFacts:
    """Facts that must be the same in driver and workers."""

    host: str
    python: str
    packages: Mapping[str, str]


def describe_process() -> ProcessFacts:
    """Return the facts of this process."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "absent"
    return ProcessFacts(socket.gethostname(), platform.python_version(), packages)


def compare_processes(driver: ProcessFacts, worker: ProcessFacts) -> list[Finding]:
    """Compare Python and packages of a worker with those of the driver."""
    where = f"worker on {worker.host}"
    remedy = "Give workers the driver's environment: PYSPARK_PYTHON, or `make env-archive`."
    same = worker.python.split(".")[:2] == driver.python.split(".")[:2]
    text = f"Python {worker.python}; the driver has {driver.python}"
    found = [Finding(where, "Python", "ok" if same else "fault", text, "" if same else remedy)]
    for name, version in driver.packages.items():
        other = worker.packages.get(name, "absent")
        if other != version:
            text = f"{name} is {other}; the driver has {version}"
            found.append(
                Finding(where, "packages", "fault" if other == "absent" else "warning", text, remedy)
            )
    if len(found) == 1:
        found.append(Finding(where, "packages", "ok", "as the driver's"))
    return found


def diagnose_machine(where: str, folders: Sequence[str] = ()) -> list[Finding]:
    """Check local disks (of ``folders``, too), locks, sockets, pickling and files of certificates."""
    found: list[Finding] = []
    for folder in dict.fromkeys([tempfile.gettempdir(), *folders]):
        try:
            free = shutil.disk_usage(folder).free
            with tempfile.NamedTemporaryFile(dir=folder) as file:
                locks = try_lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            remedy = "Set TMPDIR, and spark.local.dir or SPARK_LOCAL_DIRS, to folders with space."
            found.append(Finding(where, "disk", "fault", f"{folder}: {brief(exc)}", remedy))
            continue
        full = free < _LEAST_FREE_BYTES
        remedy = (
            f"Free space in {folder}, or choose another one by TMPDIR or spark.local.dir." if full else ""
        )
        text = f"{folder} has {format_bytes(free)} free"
        found.append(Finding(where, "disk", "fault" if full else "ok", text, remedy))
        if not locks:
            text = f"the file system of {folder} has no locks; memory limits are less exact"
            found.append(Finding(where, "locks", "warning", text, "Set TMPDIR to a local file system."))
    length = len(os.fsencode(tempfile.gettempdir())) + _SPARKS_SOCKET_BYTES
    text = f"{length} of at most {_MOST_SOCKET_BYTES} bytes"
    long = length > _MOST_SOCKET_BYTES
    remedy = "Set TMPDIR to a shorter path; Spark uses TCP otherwise." if long else ""
    found.append(Finding(where, "socket paths", "warning" if long else "ok", text, remedy))
    pickled = pickle.loads(cloudpickle.dumps(lambda: sys.version_info[0]))() == sys.version_info[0]
    found.append(Finding(where, "pickling", "ok" if pickled else "fault", ""))
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "AWS_SHARED_CREDENTIALS_FILE"):
        if (path := os.environ.get(name)) and not Path(path).expanduser().exists():
            remedy = "Put the file there on each machine, or unset the variable."
            found.append(Finding(where, "certificates", "fault", f"{name} is {path!r}: no such file", remedy))
    return found


def diagnose_repository(repo: str, where: str) -> tuple[list[Finding], list[ResourcePath]]:
    """Check a repository's configuration, registry, dataset types and object stores.

    The roots of its datastores are returned, too: none if the repository can't be opened.
    """
    try:
        roots = check_repository(repo)
    except UserError as exc:
        remedy = "Check the address, S3_ENDPOINT_URL and keys, the database, and LSST_DB_AUTH."
        found = [Finding(where, "repository", "fault", str(exc), remedy)]
        return found, []
    found = [Finding(where, "repository", "ok", repo)]
    with Butler.from_config(repo, writeable=False) as butler:
        began = time.perf_counter()
        types = list(butler.registry.queryDatasetTypes())
        found.append(
            Finding(where, "registry", "ok", f"{format_seconds(time.perf_counter() - began)} a query")
        )
        for dataset_type in types:
            try:
                _ = dataset_type.storageClass.pytype
            except Exception as exc:  # noqa: BLE001  (a module may raise anything when it is imported)
                remedy = "Install the package that its storage class names."
                text = f"{dataset_type.name}: {brief(exc)}"
                found.append(Finding(where, "dataset types", "warning", text, remedy))
    for root in roots:
        found += diagnose_store(root, where)
    return found, roots
