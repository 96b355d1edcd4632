from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from lsst.daf.butler import Butler

from spark_butler.cli import main
from spark_butler.demo.simulation import SimulatedData


def _run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_a_night_goes_in_by_commands(repo: Path, night: SimulatedData) -> None:
    for args, expected in (
        (("register-instrument", repo, night.camera), "SimCam is registered, with 2 detectors."),
        (
            ("ingest-raws", repo, night.raw_dir, "-t", "direct"),
            "30 files ingested, 0 were there already, 0 failed.",
        ),
        (
            ("ingest-raws", repo, night.raw_dir, "-t", "direct"),
            "0 files ingested, 30 were there already, 0 failed.",
        ),
        (
            ("ingest-calibs", repo, "--kind", "bias", night.raw_dir),
            "2 bias masters certified, in SimCam/calib/bias/",
        ),
        (("ingest-calibs", repo, "--kind", "dark", night.raw_dir), "2 dark masters certified"),
        (("ingest-calibs", repo, "--kind", "flat", night.raw_dir), "2 flat masters certified"),
        (("define-visits", repo, "SimCam"), "2 visits defined."),
        (
            ("ingest-refcats", repo, "--name", "sim_refcat", "-b", "r=r_mag,r_mag_err", night.refcat),
            "shards of sim_refcat ingested into refcats/sim_refcat.",
        ),
    ):
        result = _run("obs", *args)
        assert (result.exit_code, result.stderr) == (0, "")
        assert expected in result.stdout
    butler = Butler.from_config(str(repo))
    assert len(butler.query_datasets("raw", collections="SimCam/defaults")) == 30


def test_failed_files_give_status_1_and_the_others_are_ingested(
    repo: Path, night: SimulatedData, tmp_path: Path
) -> None:
    _run("obs", "register-instrument", repo, night.camera)
    good = shutil.copy(night.raw_dir / f"object_{night.visits[0]}_00.fits", tmp_path / "good.fits")
    bad = tmp_path / "bad.fits"
    bad.write_text("bad")
    result = _run("obs", "ingest-raws", repo, good, bad)
    assert result.exit_code == 1
    assert result.stdout == "1 files ingested, 0 were there already, 1 failed.\n"
    assert result.stderr.startswith(f"Error: {bad}: not a readable FITS image")
    assert result.stderr.count("\n") == 1


def _missing_repo(repo: Path, night: SimulatedData) -> list[object]:
    return ["define-visits", repo / "nowhere", "SimCam"]


def _missing_yaml(repo: Path, night: SimulatedData) -> list[object]:
    return ["register-instrument", repo, repo / "nowhere.yaml"]


def _unknown_instrument(repo: Path, night: SimulatedData) -> list[object]:
    return ["define-visits", repo, "SimCam"]


def _missing_file(repo: Path, night: SimulatedData) -> list[object]:
    return ["ingest-refcats", repo, "--name", "cat", "nowhere.fits"]


def _bad_fail_fast(repo: Path, night: SimulatedData) -> list[object]:
    _run("obs", "register-instrument", repo, night.camera)
    return ["ingest-raws", repo, night.camera, "--fail-fast"]


def _bad_name(repo: Path, night: SimulatedData) -> list[object]:
    return ["ingest-refcats", repo, "--name", "my cat!", "-b", "r=r_mag", night.refcat]


def _taken_name(repo: Path, night: SimulatedData) -> list[object]:
    _run("obs", "register-instrument", repo, night.camera)
    return ["ingest-refcats", repo, "--name", "bias", "-b", "r=r_mag", night.refcat]


def _bad_run(repo: Path, night: SimulatedData) -> list[object]:
    _run("obs", "register-instrument", repo, night.camera)
    return ["ingest-raws", repo, night.raw_dir, "--output-run", "SimCam/calib"]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (_missing_repo, "There is no Butler repository at"),
        (_missing_yaml, "nowhere.yaml: no such camera description"),
        (_unknown_instrument, "'SimCam' is not registered"),
        (_missing_file, "nowhere.fits: no such file"),
        (_bad_fail_fast, "simcam.yaml: not a readable FITS image"),
        (_bad_name, "my cat!"),
        (_taken_name, "another dataset type"),
        (_bad_run, "SimCam/calib is a CALIBRATION collection"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    repo: Path, night: SimulatedData, make: Callable[[Path, SimulatedData], list[object]], expected: str
) -> None:
    result = _run("obs", *make(repo, night))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert expected in result.stderr


def test_help_of_every_command_has_an_example() -> None:
    for group in main.commands.values():
        for command in group.commands.values() if isinstance(group, click.Group) else ():
            result = _run(group.name, command.name, "-h")
            assert result.exit_code == 0
            assert f"spark-butler {group.name} {command.name}" in result.stdout


def test_simulate_writes_what_register_and_ingest_read(tmp_path: Path, repo: Path) -> None:
    result = _run("demo", "simulate", tmp_path / "data", "--visits", 1, "--detectors", 1, "--size", 64)
    assert result.exit_code == 0
    assert "14 raw frames are in" in result.stdout
    assert _run("obs", "register-instrument", repo, tmp_path / "data" / "simcam.yaml").exit_code == 0
    assert _run("obs", "ingest-raws", repo, tmp_path / "data" / "raw").exit_code == 0


def test_commands_are_imported_lazily() -> None:
    code = "import sys, spark_butler.cli; sys.exit(any(name.startswith('lsst') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
