"""Diagnosis of full local disks of workers, for errors of Spark that name no disk.  Runs in the driver."""

from __future__ import annotations

__all__ = ["explain_full_disk"]

import os
import shutil
import socket
import tempfile
from typing import TYPE_CHECKING

from ..text import format_bytes
from .preflight import ask_workers

if TYPE_CHECKING:
    from pyspark import SparkContext

_MOST_NAMED_DISKS = 2


def explain_full_disk(context: SparkContext, reason: str) -> str:
    """Explain an error about a full disk: name the workers' disks with the least space, and the remedy.

    The text quotes ``reason``, the error of Spark, if workers can't be reached.
    """
    remedy = "Free space there, or choose other disks by spark.local.dir or SPARK_LOCAL_DIRS"
    try:
        found = {each for some in ask_workers(context, _measure_disks) for each in some}
    except Exception:  # noqa: BLE001  (the disk is the error to report)
        return f"a local disk of Spark is full ({reason.rstrip('.')}). {remedy}"
    least = sorted(found)[:_MOST_NAMED_DISKS]
    places = ", ".join(f"{folder} on {host} with {format_bytes(free)} free" for free, host, folder in least)
    return f"a local disk of Spark is full: {places}. {remedy}"


def _measure_disks() -> list[tuple[int, str, str]]:
    """Return free bytes, host and path of each local folder of this worker."""
    folders = os.environ.get("SPARK_LOCAL_DIRS") or tempfile.gettempdir()
    return [(shutil.disk_usage(each).free, socket.gethostname(), each) for each in folders.split(",")]
