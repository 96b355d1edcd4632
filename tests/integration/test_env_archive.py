"""Packing the environment for clusters: what the slow test on a cluster does not see."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
import yaml

_ROOT = Path(__file__).resolve().parents[2]
_SITE = "./lib/python3.13/site-packages/"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The program, as a module."""
    spec = importlib.util.spec_from_file_location("env_archive", _ROOT / "tools" / "env_archive.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _make_program(path: Path, lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("exit 127", "failed"),
        (
            "echo /opt/python/lib/libssl.so.3; echo /lib/libc.so.6",
            "only this machine has: /opt/python/lib/libssl.so.3$",
        ),
    ],
    ids=["breaks", "needs-this-machine"],
)
def test_python_that_fails_elsewhere_is_refused(
    tool: ModuleType, program: str, reason: str, tmp_path: Path
) -> None:
    _make_program(tmp_path / "bin" / "python", program)
    with pytest.raises(SystemExit, match=reason):
        tool.check(tmp_path)


def test_python_that_shares_its_folder_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    system = _make_program(tmp_path / "python", "echo /usr; echo 3.13")
    with pytest.raises(SystemExit, match=f"{system} shares /usr .* --python"):
        tool.build_environment(system, tmp_path / "env", [])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("numpy/__init__.py", True),
        ("numpy/__pycache__/x.cpython-313.pyc", False),
        ("numpy/_core/tests/test_umath.py", False),
        ("numpy/_core/tests/data/umath.csv", False),
        ("astropy/tests/runner.py", True),
        ("lsst/pipe/base/tests/mocks/_repo.py", True),
        ("lsst/daf/butler/configs/datastores/test.yaml", True),
        ("pyspark/serializers.py", True),
        ("pyspark/jars/spark-core.jar", False),
        ("pyspark/python/lib/pyspark.zip", False),
        ("pyarrow/include/arrow/api.h", False),
        ("x-1.dist-info/METADATA", True),
        ("x-1.dist-info/direct_url.json", False),
    ],
)
def test_files_that_are_packed(tool: ModuleType, name: str, wanted: bool) -> None:
    assert (tool.clean(tarfile.TarInfo(_SITE + name)) is not None) is wanted


def test_member_has_nothing_of_the_machine(tool: ModuleType, tmp_path: Path) -> None:
    program = _make_program(tmp_path / "bin" / "program", "")
    os.utime(program, (1, 1))
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tool.clean(archive.gettarinfo(program, "./bin/program"))
    assert (member.name, oct(member.mode)[-3:], member.mtime) == ("./bin/program", "755", 315532800)
    assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")


@pytest.mark.parametrize("path", sorted((_ROOT / "conf").rglob("*.*")), ids=lambda path: path.name)
def test_settings_can_be_read_and_hold_no_secret(path: Path) -> None:
    text = path.read_text()
    if path.suffix == ".json":
        json.loads(text)
    elif path.suffix == ".yaml":
        documents = list(yaml.safe_load_all(text))
        assert documents
        assert all(isinstance(each, dict) for each in documents)
    elif path.suffix == ".conf":
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert all(len(line.split(maxsplit=1)) == 2 for line in lines)
        assert len({line.split()[0] for line in lines}) == len(lines)
    elif path.suffix == ".sh":
        subprocess.run(["bash", "-n", path], check=True)
    assert "SECRET_ACCESS_KEY=" not in text.replace("SECRET_ACCESS_KEY=...", "")
