"""Pack the environment with its Python into one archive, for ``spark-submit --archives``.

``make env-archive`` runs this with the interpreter of ``.venv/``.  What is unpacked from the archive runs
from wherever it lies, on machines that have no Python.
"""

from __future__ import annotations

__all__ = [
    "ArchiveError",
    "check_archive",
    "collect_environment",
    "collect_interpreter",
    "find_distributions",
    "is_wanted",
    "relocate",
    "write_archive",
]

import argparse
import dataclasses
import gzip
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = "spark-butler"
SHARE = PurePosixPath("share", PROJECT)

# As in wheels: the first day that a zip file can name.
_TIME = 315532800
_ELF = b"\x7fELF"

# What every Linux has; the versions that are needed are counted below.
_SYSTEM = re.compile(
    r"(linux-vdso|ld-linux.*|libc|libm|libdl|librt|libpthread|libutil|libresolv|libgcc_s|libstdc\+\+)\.so.*"
)
_GLIBC = re.compile(rb"\0GLIBC_2\.(\d+)(?=\0)")

_STDLIB_WITHOUT = {
    *("test", "idlelib", "turtledemo", "tkinter", "lib2to3", "ensurepip", "pydoc_data"),
    *("site-packages", "dist-packages"),
}
_MODULES_WITHOUT = re.compile(r"(_?xx.*|_?test.*|_ctypes_test|_tkinter|_curses.*|readline)\.")
_PYSPARK_WITHOUT = {"jars", "bin", "sbin", "data", "examples", "licenses", "python", "tests"}
_TEST_FILE = re.compile(r"(test_.*|.*_test|conftest)\.py")
_SOURCE_SUFFIXES = (".pyc", ".pyo", ".pyx", ".pxd", ".h", ".hpp", ".a", ".lib")

_CHECK = """
import os, sys, spark_butler.worker, spark_butler.backends.daemon, spark_butler.tasks.calibrate
import lsst.ctrl.mpexec, lsst.daf.butler.direct_butler, lsst.images
import pyarrow.parquet, scipy.optimize, sqlite3, ssl
print(*sorted({line.split()[-1] for line in open("/proc/self/maps") if "/" in line}), sep="\\n")
"""


class ArchiveError(RuntimeError):
    """Raised if the environment can't be packed."""


@dataclasses.dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str
    """What it points to, relative to itself."""


type Content = Path | bytes | Link
"""A file on disk, the contents of a file that is made here, or a link."""

type Tree = dict[PurePosixPath, Content]
"""What goes into the archive, by name."""


def is_wanted(path: PurePosixPath) -> bool:
    """Whether a file of an installed package is needed to run it.

    Parameters
    ----------
    path
        The file, relative to ``site-packages``.
    """
    folders = path.parts[:-1]
    if "__pycache__" in folders or path.suffix in _SOURCE_SUFFIXES or ".." in folders:
        return False
    if folders[:1] == ("pyspark",) and len(folders) > 1 and folders[1] in _PYSPARK_WITHOUT:
        return False
    if {"tests", "test"} & set(folders):
        # Packages import helpers of their tests, as `astropy` does; never the tests themselves.
        return path.suffix == ".py" and not _TEST_FILE.fullmatch(path.name)
    return path.name not in {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}


def find_distributions(names: Sequence[str]) -> dict[str, Distribution]:
    """Find what is installed of some distributions and of all that they need.

    Parameters
    ----------
    names
        Requirements, as pip takes them.

    Returns
    -------
    distributions
        Distributions by their canonical names, in alphabetical order.

    Raises
    ------
    ArchiveError
        Raised if one is not installed.
    """
    found: dict[str, Distribution] = {}
    done: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(name) for name in names]
    while todo:
        requirement = todo.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key in done:
            continue
        done.add(key)
        try:
            found[key[0]] = distribution(key[0])
        except PackageNotFoundError:
            raise ArchiveError(f"{requirement.name} is not installed in {sys.prefix}.") from None
        for text in found[key[0]].requires or ():
            needed = Requirement(text)
            extras = key[1] or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(needed)
    return dict(sorted(found.items()))


def collect_environment(distributions: Mapping[str, Distribution], site: PurePosixPath) -> Tree:
    """Collect the files of distributions, of this project and of its jobs.

    Parameters
    ----------
    distributions
        The distributions.
    site
        Where packages go in the archive.

    Raises
    ------
    ArchiveError
        Raised if one is installed in a way that says nothing about its files.
    """
    tree: Tree = {}
    for name, each in distributions.items():
        files = [PurePosixPath(str(file)) for file in each.files or ()]
        if name == PROJECT:
            # Installed as editable.
            files = [file for file in files if ".dist-info" in str(file)]
        elif not any(file.suffix != ".pth" and ".dist-info" not in str(file) for file in files):
            raise ArchiveError(f"{name} has no files of its own; install it, but not as editable.")
        for file in files:
            if is_wanted(file) and (source := Path(str(each.locate_file(str(file))))).is_file():
                tree[site / file] = source
        for entry in each.entry_points.select(group="console_scripts"):
            tree[PurePosixPath("bin", entry.name)] = _script(entry)
    for package in ("spark_butler", "pyspark_butler"):
        tree |= _collect_folder(ROOT / package, site / package)
    for folder in ("jobs", "conf"):
        tree |= _collect_folder(ROOT / folder, SHARE / folder)
    return tree


def collect_interpreter() -> tuple[Tree, list[str]]:
    """Collect this interpreter and its standard library.

    Returns
    -------
    tree
        The files.
    missing
        Libraries that have to be on the machines where the archive is used.
    """
    version = f"python{sysconfig.get_python_version()}"
    program = Path(os.path.realpath(sys._base_executable))
    binaries: Tree = {PurePosixPath("bin", version): program}
    old = sysconfig.get_config_var("LIBDIR")
    for library in _linked(program):
        if library.name.startswith("libpython"):
            binaries[PurePosixPath("lib", library.name)] = library
    home = PurePosixPath("lib", version)
    tree: Tree = {}
    for file, source in _collect_folder(Path(sysconfig.get_path("stdlib")), home).items():
        inner = file.relative_to(home)
        if inner.parts[0] in _STDLIB_WITHOUT or inner.parts[0].startswith("config-"):
            continue
        if inner.parts[0] == "lib-dynload":
            if not _MODULES_WITHOUT.match(file.name):
                binaries[file] = source
        elif not {"test", "tests"} & set(inner.parts):
            tree[file] = source
    missing = _add_libraries(tree, binaries, old)
    for each in ("python", "python3"):
        tree[PurePosixPath("bin", each)] = Link(version)
    return tree, missing


def _collect_folder(folder: Path, place: PurePosixPath) -> Tree:
    return {
        place / path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in _SOURCE_SUFFIXES
    }


def _script(entry: EntryPoint) -> bytes:
    """Make a program that finds the interpreter beside itself."""
    return (
        "#!/bin/sh\n"
        '\'\'\'exec\' "${0%/*}/python" "$0" "$@"\n'
        "' '''\n"
        f"import sys\nfrom {entry.module} import {entry.attr}\nsys.exit({entry.attr}())\n"
    ).encode()


def _add_libraries(tree: Tree, binaries: Tree, old: str) -> list[str]:
    """Put binaries of the interpreter into a tree, with the libraries of this machine that they need."""
    missing: set[str] = set()
    for name, source in binaries.items():
        assert isinstance(source, Path)
        data = relocate(source.read_bytes(), old, name)
        tree[name] = source if data is None else data
        for library in _linked(source):
            if data is None:
                missing.add(library.name)
            elif not library.name.startswith("libpython"):
                tree.setdefault(PurePosixPath("lib", library.name), library)
    return sorted(missing - {name.name for name in tree})


def _linked(binary: Path) -> Iterator[Path]:
    """Libraries that a binary is linked to, but for those of every Linux."""
    process = subprocess.run(["ldd", binary], capture_output=True, text=True)
    for name, path in re.findall(r"^\s*(\S+) => (/\S+)", process.stdout, re.MULTILINE):
        if not _SYSTEM.fullmatch(name):
            yield Path(path).with_name(name)


def relocate(data: bytes, old: str, name: PurePosixPath) -> bytes | None:
    """Make a binary look for its libraries beside itself.

    Parameters
    ----------
    data
        Contents of the binary.
    old
        The directory that it has in it as the place of libraries.
    name
        Where the binary goes in the archive, whose libraries go to ``lib``.

    Returns
    -------
    data
        The new contents, or `None` if there was nothing to change.

    Raises
    ------
    ArchiveError
        Raised if there is no room for the new place.
    """
    up = "../" * (len(name.parts) - 1) + "lib"
    before = b"\0" + old.encode() + b"\0"
    after = b"\0" + f"$ORIGIN/{up}".encode()
    if not data.startswith(_ELF) or before not in data:
        return None
    if len(after) >= len(before):
        raise ArchiveError(f"{name}: {old!r} is too short to be replaced by a relative path.")
    # The dynamic section points to the start of the string; its end is the first zero byte.
    return data.replace(before, after.ljust(len(before), b"\0"))


def write_archive(tree: Mapping[PurePosixPath, Content], path: Path, level: int = 6) -> tuple[int, int, str]:
    """Write the archive; the same tree gives the same bytes.

    Parameters
    ----------
    tree
        What goes into it.
    path
        Where to.
    level
        How hard to compress, from 1 to 9.

    Returns
    -------
    size
        Number of bytes of all files.
    glibc
        Release of glibc 2 that is needed; 0 if none.
    reason
        The file that needs it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    size, glibc, reason = 0, 0, ""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with (
            partial.open("wb") as file,
            gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0, compresslevel=level) as stream,
            tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name, content in sorted(tree.items()):
                info = tarfile.TarInfo(str(name))
                info.mtime = _TIME
                if isinstance(content, Link):
                    info.type, info.linkname = tarfile.SYMTYPE, content.target
                    archive.addfile(info)
                    continue
                data = content.read_bytes() if isinstance(content, Path) else content
                is_program = name.parts[0] == "bin" or (
                    isinstance(content, Path) and os.access(content, os.X_OK)
                )
                info.size, info.mode = len(data), 0o755 if is_program else 0o644
                archive.addfile(info, io.BytesIO(data))
                size += len(data)
                if data.startswith(_ELF):
                    needed = max((int(each[1]) for each in _GLIBC.finditer(data)), default=0)
                    if needed > glibc:
                        glibc, reason = needed, str(name)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return size, glibc, reason


def check_archive(path: Path, code: str = _CHECK, known: Collection[str] = ()) -> None:
    """Unpack an archive and run its Python with an empty environment.

    Parameters
    ----------
    path
        The archive.
    code
        What to run.  It prints the files that it has in memory, one a line.
    known
        Names of libraries that may come from the machine.

    Raises
    ------
    ArchiveError
        Raised if it doesn't run, or uses files of this machine.
    """
    with tempfile.TemporaryDirectory(prefix="spark-butler-env-") as name:
        folder = Path(name).resolve()
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="tar")
        process = subprocess.run(
            [folder / "bin" / "python", "-B", "-c", code], env={}, cwd="/", capture_output=True, text=True
        )
    if process.returncode:
        raise ArchiveError(f"The Python in {path} does not run:\n{process.stderr.strip()}")
    alien = [
        line
        for line in process.stdout.splitlines()
        if not line.startswith((f"{folder}/", "/dev/", "/usr/lib/locale/"))
        and not _SYSTEM.fullmatch(os.path.basename(line))
        and os.path.basename(line) not in known
        and "gconv" not in line
    ]
    if alien:
        raise ArchiveError(f"The Python in {path} uses files of this machine: {', '.join(alien)}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make env-archive", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "dist" / "spark-butler-env.tar.gz")
    parser.add_argument(
        "--with",
        dest="more",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="also pack this package, which is installed in the environment (may be repeated)",
    )
    parser.add_argument("--level", type=int, default=6, choices=range(1, 10), help="of compression")
    parser.add_argument("--no-check", action="store_true", help="don't try the archive")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack, try, and tell."""
    options = _parse(arguments)
    try:
        if not sys.platform.startswith("linux") or shutil.which("ldd") is None:
            raise ArchiveError("Archives are for Linux and packed on Linux.")
        tree, missing = collect_interpreter()
        site = PurePosixPath("lib", f"python{sysconfig.get_python_version()}", "site-packages")
        distributions = find_distributions([PROJECT, *options.more])
        tree |= collect_environment(distributions, site)
        size, glibc, reason = write_archive(tree, options.output, options.level)
        if not options.no_check:
            check_archive(options.output, known=missing)
    except ArchiveError as exc:
        sys.exit(f"env-archive: {exc}")
    print(
        f"{options.output}: {options.output.stat().st_size / 1e6:.0f} MB, unpacked {size / 1e6:.0f} MB; "
        f"Python {sys.version.split()[0]}, {len(distributions)} packages, "
        f"PySpark {distributions['pyspark'].version} without its JARs"
    )
    print(f"needs {os.uname().machine}, glibc 2.{glibc} or newer (for {reason})")
    if missing:
        print(f"needs these libraries on the machines: {', '.join(missing)}")


if __name__ == "__main__":
    main()
