"""The commands ``demo run`` and ``demo serve``: from a simulated night to catalogs and pictures.

Run in processes of their own; the pipeline runs in another, started in the same way as by a user.
"""

from __future__ import annotations

__all__ = ["run_demo", "serve_demo"]

import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import UserError
from .command import LeafCommand, print_json
from .exit_status import stopped_by

if TYPE_CHECKING:
    from ..demo.night import DemoNight

OUTPUT = "u/demo/process_ccd"


@click.command("run", cls=LeafCommand)
@click.argument("directory", default="demo-data")
@click.option("--visits", default=3, show_default=True, type=click.IntRange(1))
@click.option("--detectors", default=4, show_default=True, type=click.IntRange(1))
@click.option("--size", default=1024, show_default=True, help="Columns and rows of a detector.")
@click.option("--cores", default=2, show_default=True, help="Cores that Spark may use.")
def run_demo(directory: str, visits: int, detectors: int, size: int, cores: int, form: str) -> None:
    """Simulate a night, process it on Spark and an S3 server, and draw pictures.

    \b
    Example:
      spark-butler demo run demo-data --visits 3 --detectors 4
    """
    from ..demo.night import DemoNight

    # Servers are stopped when this process receives a signal to end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = _run(DemoNight(Path(directory).absolute(), visits, detectors, size), cores)
    except KeyboardInterrupt:
        status = stopped_by(signal.SIGINT)
    if form == "json":
        print_json({"directory": os.path.abspath(directory), "exit_status": status})
    sys.exit(status)


@click.command("serve", cls=LeafCommand)
@click.argument("directory", default="demo-data")
def serve_demo(directory: str, form: str) -> None:
    """Serve the object store of a demo again, until Ctrl-C.

    \b
    Example:
      spark-butler demo serve demo-data
    """
    from ..demo.night import DemoNight
    from ..demo.s3server import EmbeddedS3

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    night = DemoNight(Path(directory).absolute(), 1, 1, 64)
    if not night.repo.is_dir():
        raise UserError(f"There is no repository in {night.repo}: run `spark-butler demo run` first.")
    settings = night.directory / "s3.env"
    with EmbeddedS3(night.objects) as server:
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in server.environment().items()]
        settings.unlink(missing_ok=True)
        with open(os.open(settings, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.writelines(lines)
        click.echo(f"S3 server at {server.endpoint_url}; Ctrl-C stops it. In another terminal:")
        click.echo(f"  . {os.path.relpath(settings)}")
        click.echo(f"  butler query-collections {os.path.relpath(night.repo)}")
        try:
            signal.pause()
        except KeyboardInterrupt:
            pass
        finally:
            settings.unlink()


def _run(night: DemoNight, cores: int) -> int:
    """Make catalogs and pictures, from an earlier demo's night if there is one."""
    from ..demo.s3server import EmbeddedS3
    from ..spark.java import find_java_home

    start = time.monotonic()
    java_home = find_java_home()
    prepared = night.is_prepared()
    if not prepared:
        night.clear()
    with EmbeddedS3(night.objects) as server, server.activated():
        _say(start, f"S3 server at {server.endpoint_url}")
        if prepared:
            _say(start, "The night is simulated and ingested already")
        else:
            _say(start, f"Simulating and ingesting {night.visits} visits of {night.detectors} detectors")
            night.prepare(server)
        _say(start, "Processing on Spark")
        status = _process(night, java_home, cores)
        if status == 0:
            _say(start, "Fetching the report and drawing pictures")
            _fetch_report(night)
            pictures = _draw(night)
    _say(start, "S3 server stopped")
    if status == 0:
        _explain(night, pictures)
    return status


def _process(night: DemoNight, java_home: Path, cores: int) -> int:
    """Run the job in the same way as a user."""
    from ..demo.night import INSTRUMENT, NIGHT_COLLECTION

    scripts = sysconfig.get_path("scripts")
    package = files("spark_butler")
    command = [
        os.path.join(scripts, "spark-submit"),
        *("--master", f"local[{cores}]", "--conf", "spark.ui.enabled=false"),
        *(str(package.joinpath("cli", "__main__.py")), "run", "-b", str(night.repo)),
        *("-p", str(package.joinpath("demo", "process_ccd.yaml"))),
        *("-i", NIGHT_COLLECTION, "-o", OUTPUT, "-d", f"instrument='{INSTRUMENT}'"),
        *("--register-dataset-types", "--temporary", "auto"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "SPARK_HOME"} | {
        "JAVA_HOME": str(java_home),
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    click.echo(
        "  $ " + shlex.join(os.path.relpath(part) if os.path.isabs(part) else part for part in command)
    )
    log = night.directory / "process_ccd.log"
    click.echo(f"  2> {os.path.relpath(log)}")
    with open(log, "w") as stream:
        status = subprocess.run(command, env=environment, stderr=stream, check=False).returncode
    if status != 0:
        click.echo(
            f"Exit status {status}; the log ends with:\n" + "".join(log.read_text().splitlines(True)[-20:])
        )
    return status


def _fetch_report(night: DemoNight) -> None:
    """Copy the report of the run out of the object store, by the command."""
    folder = night.directory / "report"
    folder.mkdir(exist_ok=True)
    report = [sys.executable, "-m", "spark_butler.cli", "report", str(night.repo), OUTPUT]
    pages = ["--html", str(folder / "report.html"), "--format", "json"]
    with open(folder / "report.json", "w") as stream:
        subprocess.run([*report, *pages], stdout=stream, stderr=subprocess.DEVNULL, check=True)
    shutil.copy(folder / "report.html", night.directory / "report.html")


def _draw(night: DemoNight) -> list[Path]:
    """Draw the first visit and its first detector."""
    from ..demo.night import INSTRUMENT
    from ..products.pictures import draw_detector, draw_focal_plane

    focal_plane, detector = night.directory / "focal_plane.png", night.directory / "detector.png"
    with night.open(OUTPUT) as butler:
        visit = min(record.id for record in butler.query_dimension_records("visit"))
        draw_focal_plane(butler, focal_plane, instrument=INSTRUMENT, visit=visit)
        draw_detector(butler, detector, instrument=INSTRUMENT, visit=visit, detector=0)
    return [focal_plane, detector]


def _explain(night: DemoNight, pictures: list[Path]) -> None:
    """Print the places of all results, and commands to view them."""
    here = os.path.relpath(night.directory)
    click.echo(f"""
Pictures    {" ".join(os.path.relpath(picture) for picture in pictures)}
Report      {here}/report.html, for a browser
Simulation  {here}/night: raw frames, truth.parquet
Repository  {here}/repo, with its datasets in S3 (data of the server: {here}/s3); outputs in {OUTPUT}

To look around in the repository, start its S3 server again in another terminal and use any Butler command:
  spark-butler demo serve {here}
  . {here}/s3.env
  butler query-datasets {here}/repo --collections {OUTPUT} source""")


def _say(start: float, text: str) -> None:
    click.echo(f"[{time.monotonic() - start:5.1f} s] {text}")
