"""The JVM of this process: how it is launched."""

from __future__ import annotations

__all__ = ["jvm_is_there", "launch_jvm", "may_be_elsewhere"]

import os
import threading
from collections.abc import Mapping
from pathlib import Path

from .errors import SessionError
from .java import find_java_home
from .messages import brief
from .stderr_relay import StderrRelay

# Who comes second finds the JVM, and the environment as the first has found it.
_launching = threading.Lock()
# Java's quick compiler only.
_QUICK_JVM = "-XX:TieredStopAtLevel=1"
# Read by Spark's launcher, before spark.driver.extraJavaOptions.
_JVM_VARIABLE = "SPARK_SUBMIT_OPTS"


def jvm_is_there() -> bool:
    """Whether this process has a JVM, its own or that of the ``spark-submit`` that has started it."""
    from pyspark import SparkContext

    return SparkContext._gateway is not None or "PYSPARK_GATEWAY_PORT" in os.environ


def launch_jvm(*, quick: bool, stderr: StderrRelay | None = None) -> None:
    """Launch the JVM of this process, unless it is there.

    Parameters
    ----------
    quick
        Whether it is to spend little on compiling its own code.
    stderr
        What it is to have for its standard error; by default that of this
        process.

    Raises
    ------
    spark_butler.errors.SessionError
        Raised if there is no Java that will do, or if it does not start.

    Notes
    -----
    The options it is given here give way to those of the Spark configuration.
    """
    if not jvm_is_there():
        os.environ["JAVA_HOME"] = str(find_java_home())
        with _launching:
            try:
                _launch(_QUICK_JVM if quick else "", stderr)
            except Exception as exc:
                raise SessionError(f"Spark did not start: {brief(exc)}") from exc


def may_be_elsewhere(master: str | None, conf: Mapping[str, str]) -> bool:
    """Whether anything names a cluster, as far as that can be seen before there is a JVM.

    Parameters
    ----------
    master
        Address of the cluster that was asked for.
    conf
        Spark settings that go before all others.
    """
    if named := master or conf.get("spark.master"):
        return not named.startswith("local")
    if "MASTER" in os.environ or "--master" in os.environ.get("PYSPARK_SUBMIT_ARGS", ""):
        return True
    folder = os.environ.get("SPARK_CONF_DIR") or os.path.join(os.environ.get("SPARK_HOME", ""), "conf")
    try:
        return "spark.master" in Path(folder, "spark-defaults.conf").read_text()
    except OSError:
        return False


def _launch(options: str, stderr: StderrRelay | None) -> None:
    """Launch the JVM, unless it is there, with options that come before the user's."""
    from pyspark import SparkContext
    from pyspark.java_gateway import launch_gateway

    # Another thread may be launching it.
    with SparkContext._lock:
        if SparkContext._gateway is not None:
            return
        before = os.environ.get(_JVM_VARIABLE)
        os.environ[_JVM_VARIABLE] = f"{options} {before or ''}".strip()
        try:
            gateway = None
            if stderr is not None:
                gateway = launch_gateway(popen_kwargs={"stderr": stderr})  # type: ignore[no-untyped-call]
            SparkContext._ensure_initialized(gateway=gateway)
        finally:
            os.environ.pop(_JVM_VARIABLE, None)
            if before is not None:
                os.environ[_JVM_VARIABLE] = before
