"""The rules of the house, as far as a machine can check them."""

from __future__ import annotations

import ast
import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGE = _ROOT / "spark_butler"
# Spark finds it by its name.
_SOURCE = _ROOT / "pyspark_butler"
_MODULES = sorted([*_PACKAGE.rglob("*.py"), *_SOURCE.rglob("*.py")])
_JOBS = sorted((_ROOT / "jobs").glob("*.py"))


def _module_name(path: Path) -> str:
    parts = path.relative_to(_ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


_NAMES = {_module_name(path): path for path in _MODULES}


@functools.cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def _walk_what_runs(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _walk_what_runs(child)


def _imports(path: Path) -> Iterator[str]:
    """Yield the full name of whatever is imported anywhere in a file, but for type checking only."""
    package = _module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in _walk_what_runs(_parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                inside = f"{origin}.{alias.name}"
                yield inside if inside in _NAMES else origin


def _top(name: str) -> str:
    return name.partition(".")[0]


def test_there_is_something_to_check() -> None:
    assert {"spark_butler", "spark_butler.errors", "spark_butler.spark.java"} <= _NAMES.keys()


def test_imports_inside_the_package_go_one_way() -> None:
    edges = {name: sorted({i for i in _imports(path) if i in _NAMES}) for name, path in _NAMES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "import cycle: " + " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for each in edges[name]:
                visit(each, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_cycle_and_relative_imports_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "spark_butler"
    (package / "room").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "room" / "__init__.py").write_text("from .door import x\n")
    (package / "room" / "door.py").write_text("def f():\n    from .. import hall\nx = 1\n")
    (package / "hall.py").write_text(
        "from .room import x\nimport spark_butler.room.door\nif TYPE_CHECKING:\n    import numpy\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "_ROOT", tmp_path)
    names = {_module_name(path): path for path in sorted(package.rglob("*.py"))}
    monkeypatch.setattr(sys.modules[__name__], "_NAMES", names)
    assert list(_imports(package / "hall.py")) == ["spark_butler.room", "spark_butler.room.door"]
    assert list(_imports(package / "room" / "door.py")) == ["spark_butler.hall"]
    with pytest.raises(AssertionError, match="import cycle: spark_butler.hall -> spark_butler.room"):
        test_imports_inside_the_package_go_one_way()


@pytest.mark.parametrize("path", _MODULES, ids=_module_name)
def test_only_spark_package_imports_pyspark(path: Path) -> None:
    allowed = path == _SOURCE / "__init__.py" or (_PACKAGE / "spark") in path.parents
    assert allowed or "pyspark" not in {_top(name) for name in _imports(path)}


@pytest.mark.parametrize("path", _MODULES, ids=_module_name)
def test_module_defines_all(path: Path) -> None:
    public: list[str] | None = None
    defined: set[str] = set()
    for node in _parse(path).body:
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.TypeAlias):
            targets = (
                node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None) or node.name]
            )
            for target in targets:
                if isinstance(target, ast.Name):
                    defined.add(target.id)
                    if target.id == "__all__":
                        assert isinstance(node, ast.Assign | ast.AnnAssign)
                        assert node.value is not None
                        public = list(ast.literal_eval(node.value))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            defined.update(alias.asname or alias.name for alias in node.names)
    assert public is not None, f"{path} has no __all__"
    assert "__getattr__" in defined or set(public) <= defined


@pytest.mark.parametrize("path", _MODULES, ids=_module_name)
def test_only_the_command_line_prints(path: Path) -> None:
    calls = [node.func for node in ast.walk(_parse(path)) if isinstance(node, ast.Call)]
    prints = any(isinstance(function, ast.Name) and function.id == "print" for function in calls)
    assert path == _PACKAGE / "cli" / "main.py" or not prints


@pytest.mark.parametrize("path", _JOBS, ids=lambda path: path.name)
def test_jobs_import_only_the_package_and_the_standard_library(path: Path) -> None:
    assert {_top(name) for name in _imports(path)} <= {"spark_butler", *sys.stdlib_module_names}


def test_import_of_the_package_is_light_and_needs_no_java() -> None:
    code = "import sys, spark_butler; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=_ROOT, env={"PATH": ""}, capture_output=True, text=True, check=True
    )
    loaded = set(process.stdout.split())
    assert "spark_butler" in loaded
    assert not loaded & {"pyspark", "py4j", "lsst", "astropy", "numpy", "boto3"}


def test_import_of_pyspark_plugin_loads_no_middleware() -> None:
    code = "import sys, pyspark_butler; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=_ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(process.stdout.split())
    assert "pyspark_butler" in loaded
    assert not loaded & {"spark_butler", "lsst", "astropy", "boto3"}


def _tracked() -> list[Path]:
    if shutil.which("git") is None or not (_ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=_ROOT, capture_output=True, check=True)
    return [_ROOT / name for name in listing.stdout.decode().split("\0") if name]


def test_tracked_files_name_no_local_path() -> None:
    # Written so that this file doesn't name them either.
    place = re.compile(rb"(?<![\w.}>])/(?:wor[k]/|tmp[/]w/|roo[t]/|hom[e]/\w|User[s]/\w)")
    found = [
        f"{path.relative_to(_ROOT)}:{number}"
        for path in _tracked()
        if path.is_file()
        for number, line in enumerate(path.read_bytes().splitlines(), start=1)
        if place.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-java.lock"])
def test_lock_file_names_versions_and_hashes_but_no_address(name: str) -> None:
    text = (_ROOT / name).read_text()
    assert "://" not in text
    assert "--index-url" not in text
    entries = re.split(r"\n(?=\S)", text.strip())
    assert all(re.match(r"[\w.-]+==[\w.]+", entry) and "--hash=sha256:" in entry for entry in entries)


def test_lock_file_covers_the_project() -> None:
    import tomllib

    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {*project["dependencies"], *extras["demo"], *extras["test"]}
    locked = set(re.findall(r"^([\w.-]+)==", (_ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert {re.match(r"[\w.-]+", each)[0] for each in wanted} <= locked  # type: ignore[index]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "check", "--quiet", "."], id="ruff-check"),
        pytest.param(["ruff", "format", "--check", "--quiet", "."], id="ruff-format"),
        pytest.param(["mypy", "--strict", "spark_butler", "pyspark_butler", "jobs"], id="mypy"),
    ],
)
def test_lint(command: list[str]) -> None:
    process = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.returncode == 0, process.stdout
