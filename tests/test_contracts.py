"""The contracts of CONTRIBUTING.md, as far as a program can check them."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]
_DOCS = _ROOT / "docs"
_PACKAGE = _ROOT / "spark_butler"
# Spark finds it by its name.
_SOURCE = _ROOT / "pyspark_butler"
_MODULES = sorted([*_PACKAGE.rglob("*.py"), *_SOURCE.rglob("*.py")])
_JOBS = sorted((_ROOT / "jobs").glob("*.py"))
_PROGRAMS = Path(sys.executable).parent
_MYPY = "mypy --strict spark_butler pyspark_butler jobs tests"

_MODULE_LINES = 400
_FUNCTION_LINES = 60
_PACKAGE_MODULES = 15


def _module_name(path: Path) -> str:
    parts = path.relative_to(_ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def _walk_what_runs(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _walk_what_runs(child)


def _imported_packages(path: Path) -> Iterator[str]:
    """Yield the packages imported anywhere in a file by absolute names, but for type checking only."""
    for node in _walk_what_runs(_parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def test_modules_are_found() -> None:
    assert {"spark_butler", "spark_butler.errors", "spark_butler.spark.java"} <= set(
        map(_module_name, _MODULES)
    )


@pytest.mark.parametrize("path", _MODULES, ids=_module_name)
def test_only_spark_package_imports_pyspark(path: Path) -> None:
    allowed = path == _SOURCE / "__init__.py" or (_PACKAGE / "spark") in path.parents
    assert allowed or "pyspark" not in set(_imported_packages(path))


@pytest.mark.parametrize("path", _MODULES, ids=_module_name)
def test_module_defines_all(path: Path) -> None:
    public: list[str] | None = None
    defined: set[str] = set()
    for node in _parse(path).body:
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.TypeAlias):
            if isinstance(node, ast.Assign):
                targets = node.targets
            else:
                targets = [node.name if isinstance(node, ast.TypeAlias) else node.target]
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
def test_module_is_short(path: Path) -> None:
    n_lines = len(path.read_text().splitlines())
    assert n_lines <= _MODULE_LINES


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of lines of a function without its docstring."""
    lines = node.end_lineno - node.lineno + 1  # type: ignore[operator]
    if ast.get_docstring(node) is not None:
        lines -= node.body[0].end_lineno - node.body[0].lineno + 1  # type: ignore[operator]
    return lines


@pytest.mark.parametrize("path", _MODULES, ids=_module_name)
def test_functions_are_short(path: Path) -> None:
    functions = [
        node for node in ast.walk(_parse(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = {node.name: _length(node) for node in functions if _length(node) > _FUNCTION_LINES}
    assert not long


def test_packages_are_small() -> None:
    counts = Counter(
        _module_name(path.parent / "__init__.py") for path in _MODULES if path.stem != "__init__"
    )
    large = {name for name, count in counts.items() if count > _PACKAGE_MODULES}
    assert large == set()


def _documented_names() -> dict[str, set[str]]:
    """Return the public names of each package by the table of docs/api.md; "all" is an empty set."""
    rows = re.findall(r"^\| `([\w.]+)` \| (.*) \|$", (_DOCS / "api.md").read_text(), re.MULTILINE)
    return {package: set(re.findall(r"`(\w+)`", names)) for package, names in rows}


_DOCUMENTED = _documented_names()


@pytest.mark.parametrize("name", _DOCUMENTED)
def test_public_names_are_those_of_the_reference(name: str) -> None:
    module = importlib.import_module(name)
    public = set(module.__all__) - {"__version__"}
    if not _DOCUMENTED[name]:
        defined = {each for each, value in vars(module).items() if isinstance(value, type)}
        assert public == {each for each in defined if getattr(module, each).__module__ == name}
    else:
        assert public == _DOCUMENTED[name]
        assert all(hasattr(module, each) for each in public)


def test_every_package_with_public_names_is_in_the_reference() -> None:
    packages = {_module_name(path) for path in _PACKAGE.glob("*/__init__.py")}
    public = {name for name in packages if importlib.import_module(name).__all__}
    assert public <= set(_DOCUMENTED)


@pytest.mark.parametrize("path", _MODULES, ids=_module_name)
def test_only_the_command_line_prints(path: Path) -> None:
    calls = [node.func for node in ast.walk(_parse(path)) if isinstance(node, ast.Call)]
    prints = any(isinstance(function, ast.Name) and function.id == "print" for function in calls)
    assert path == _PACKAGE / "cli" / "main.py" or not prints


@pytest.mark.parametrize("path", _JOBS, ids=lambda path: path.name)
def test_jobs_import_only_the_package_and_the_standard_library(path: Path) -> None:
    assert set(_imported_packages(path)) <= {"spark_butler", *sys.stdlib_module_names}


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
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {*project["dependencies"], *extras["demo"], *extras["test"]}
    locked = set(re.findall(r"^([\w.-]+)==", (_ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert {re.match(r"[\w.-]+", each)[0] for each in wanted} <= locked  # type: ignore[index]


_PAGES = [
    _ROOT / "README.md",
    _ROOT / "CONTRIBUTING.md",
    *sorted(_DOCS.rglob("*.md")),
    *sorted((_ROOT / "conf").rglob("*.md")),
]
_FIRST = "SimCam/defaults"
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def _name(page: Path) -> str:
    return str(page.relative_to(_ROOT))


def _text(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def _anchors(page: Path) -> set[str]:
    """Return the anchors of the headings, named as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", _text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", _PAGES, ids=_name)
def test_links_resolve(page: Path) -> None:
    for target, anchor in _LINK.findall(_text(page)):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), target
        assert not anchor or anchor in _anchors(there), f"{target}#{anchor}"


def test_index_links_every_page() -> None:
    linked = {target for target, _ in _LINK.findall((_DOCS / "index.md").read_text())}
    assert {page.name for page in _DOCS.glob("*.md")} - {"index.md"} - linked == set()


def test_index_of_records_links_every_record() -> None:
    linked = {target for target, _ in _LINK.findall((_DOCS / "adr" / "index.md").read_text())}
    assert {page.name for page in (_DOCS / "adr").glob("*.md")} - {"index.md"} == linked


@pytest.mark.parametrize(
    "page",
    [_DOCS / "architecture.md", _ROOT / "CONTRIBUTING.md", *sorted((_DOCS / "adr").glob("[0-9]*.md"))],
    ids=_name,
)
def test_modules_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"`([a-z_]+/[\w/]+\.py)`", page.read_text()))
    assert {name for name in named if not (_PACKAGE / name).exists()} == set()


def test_contents_name_every_page() -> None:
    contents = {
        page for pages in runpy.run_path(str(_DOCS / "conf.py"))["CONTENTS"].values() for page in pages
    }
    assert {page.stem for page in _DOCS.glob("*.md")} - {"index"} - contents == set()


@pytest.mark.parametrize(
    "page",
    [each for each in (_PAGES[0], *sorted((_ROOT / "conf").rglob("*.*"))) if _FIRST in each.read_text()],
    ids=lambda page: f"{page.parent.name}/{page.name}",
)
def test_commands_of_a_first_run_are_complete(page: Path) -> None:
    text = page.read_text()
    assert text.count("--register-dataset-types") >= text.count(_FIRST)


@pytest.mark.parametrize(
    "command",
    [
        "ruff check --quiet .",
        "ruff format --check --quiet .",
        "lint-imports",
        pytest.param(_MYPY, marks=pytest.mark.slow),
    ],
)
def test_lint(command: str) -> None:
    program, *arguments = command.split()
    process = subprocess.run(
        [_PROGRAMS / program, *arguments],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.returncode == 0, process.stdout


def _imports_of_pages() -> Iterator[tuple[str, str, str]]:
    """Yield page, module and name of what the documents and notebooks import from this package."""
    for page in (*_ROOT.glob("*.md"), *_DOCS.rglob("*.md"), *_DOCS.rglob("*.ipynb")):
        for module, names in re.findall(r"from (spark_butler[\w.]*) import ([\w, ]+)", page.read_text()):
            for name in names.split(","):
                yield page.name, module, name.strip()


@pytest.mark.parametrize(("page", "module", "name"), sorted(set(_imports_of_pages())))
def test_names_that_documents_import_exist(page: str, module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)
