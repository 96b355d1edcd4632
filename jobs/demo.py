#!/usr/bin/env python3
"""Simulate a night, process it on Spark and an S3 server, and draw pictures: ``make demo``."""

from __future__ import annotations

__all__: list[str] = []

import argparse
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from spark_butler.cli import main as butler_command
from spark_butler.demo.night import INSTRUMENT, NIGHT_COLLECTION, DemoNight
from spark_butler.demo.s3server import EmbeddedS3
from spark_butler.errors import UserError
from spark_butler.products.pictures import draw_detector, draw_focal_plane
from spark_butler.spark.java import find_java_home

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = "u/demo/process_ccd"


def main() -> int:
    """Run the demo, or serve what it left; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help="only start the object store, until Ctrl-C")
    parser.add_argument("--directory", type=Path, default=ROOT / "demo-data", metavar="DIR")
    parser.add_argument("--visits", type=int, default=3)
    parser.add_argument("--detectors", type=int, default=4)
    parser.add_argument("--size", type=int, default=1024, help="columns and rows of a detector")
    parser.add_argument("--cores", type=int, default=2, help="cores that Spark may use")
    arguments = parser.parse_args()
    # So that what was started is stopped when this process is told to end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    night = DemoNight(arguments.directory.absolute(), arguments.visits, arguments.detectors, arguments.size)
    try:
        return serve(night) if arguments.serve else run(night, arguments.cores)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def run(night: DemoNight, cores: int) -> int:
    """Go from nothing, or from what an earlier demo left, to catalogs and pictures."""
    start = time.monotonic()
    java_home = find_java_home()
    prepared = night.is_prepared()
    if not prepared:
        night.clear()
    with EmbeddedS3(night.objects) as server, server.activated():
        say(start, f"S3 server at {server.endpoint_url}")
        if prepared:
            say(start, "The night is simulated and ingested already")
        else:
            say(start, f"Simulating and ingesting {night.visits} visits of {night.detectors} detectors")
            night.prepare(server)
        say(start, "Processing on Spark")
        status = process(night, java_home, cores)
        if status == 0:
            say(start, "Fetching the report and drawing pictures")
            fetch_report(night)
            pictures = draw(night)
            write_report(night)
    say(start, "S3 server stopped")
    if status == 0:
        explain(night, pictures)
    return status


def process(night: DemoNight, java_home: Path, cores: int) -> int:
    """Run the job as anybody would."""
    scripts = sysconfig.get_path("scripts")
    command = [
        os.path.join(scripts, "spark-submit"),
        *("--master", f"local[{cores}]", "--conf", "spark.ui.enabled=false"),
        *(str(ROOT / "jobs" / "process_ccd.py"), "-b", str(night.repo)),
        *(
            "-i",
            NIGHT_COLLECTION,
            "-o",
            OUTPUT,
            "-d",
            f"instrument='{INSTRUMENT}'",
            "--register-dataset-types",
        ),
        *("--temporary", "auto"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "SPARK_HOME"} | {
        "JAVA_HOME": str(java_home),
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    print("  $ " + shlex.join(os.path.relpath(part) if os.path.isabs(part) else part for part in command))
    log = night.directory / "process_ccd.log"
    print(f"  2> {os.path.relpath(log)}", flush=True)
    with open(log, "w") as stream:
        status = subprocess.run(command, env=environment, stderr=stream, check=False).returncode
    if status != 0:
        print(f"Exit status {status}; the log ends with:\n" + "".join(log.read_text().splitlines(True)[-20:]))
    return status


def fetch_report(night: DemoNight) -> None:
    """Copy the report of the run out of the object store, by the command."""
    folder = night.directory / "report"
    folder.mkdir(exist_ok=True)
    command = [
        os.path.join(sysconfig.get_path("scripts"), "spark-butler"),
        *("report", str(night.repo), OUTPUT, "--html", str(folder / "report.html"), "--format", "json"),
    ]
    with open(folder / "report.json", "w") as stream:
        subprocess.run(command, stdout=stream, stderr=subprocess.DEVNULL, check=True)


def draw(night: DemoNight) -> list[Path]:
    """Draw the first visit and its first detector."""
    focal_plane, detector = night.directory / "focal_plane.png", night.directory / "detector.png"
    with night.open(OUTPUT) as butler:
        visit = min(record.id for record in butler.query_dimension_records("visit"))
        draw_focal_plane(butler, focal_plane, instrument=INSTRUMENT, visit=visit)
        draw_detector(butler, detector, instrument=INSTRUMENT, visit=visit, detector=0)
    return [focal_plane, detector]


def write_report(night: DemoNight) -> None:
    """Write the report of the run as a page."""
    command = ["report", str(night.repo), OUTPUT, "--html", str(night.directory / "report.html")]
    butler_command.main(command, standalone_mode=False)


def explain(night: DemoNight, pictures: list[Path]) -> None:
    """Say where everything is, and how to look at it."""
    here = os.path.relpath(night.directory)
    print(f"""
Pictures    {" ".join(os.path.relpath(picture) for picture in pictures)}
Report      {here}/report.html, for a browser
Simulation  {here}/night: raw frames, truth.parquet
Repository  {here}/repo, with its datasets in S3 (data of the server: {here}/s3); outputs in {OUTPUT}

To look around in the repository, start its S3 server again in another terminal and use any Butler command:
  make demo-server
  . .venv/bin/activate && . {here}/s3.env
  butler query-datasets {here}/repo --collections {OUTPUT} source""")


def serve(night: DemoNight) -> int:
    """Serve the demo's objects until told to stop."""
    if not night.repo.is_dir():
        raise UserError(f"There is no repository in {night.repo}: run the demo first (make demo).")
    settings = night.directory / "s3.env"
    with EmbeddedS3(night.objects) as server:
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in server.environment().items()]
        settings.unlink(missing_ok=True)
        with open(os.open(settings, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.writelines(lines)
        print(f"S3 server at {server.endpoint_url}; Ctrl-C stops it. In another terminal:")
        print(f"  . .venv/bin/activate && . {os.path.relpath(settings)}")
        print(f"  butler query-collections {os.path.relpath(night.repo)}", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            pass
        finally:
            settings.unlink()
    return 0


def say(start: float, text: str) -> None:
    """Print a line of progress."""
    print(f"[{time.monotonic() - start:5.1f} s] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
