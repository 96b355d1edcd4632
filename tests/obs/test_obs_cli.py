from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np
import pytest
import sqlalchemy.exc
import yaml
from click.testing import CliRunner, Result
from lsst.daf.butler import Butler

from spark_butler.cli.main import main
from spark_butler.demo.simulation import SimulatedData
from spark_butler.obs.repository import get_description

pytestmark = pytest.mark.pipeline


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
        (("define-visits", repo, "SimCam", "--padding", "300"), "2 visits defined."),
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
    described = get_description(butler, "SimCam").detectors[0]
    half = np.array([described.nx, described.ny]) / 2 + 300
    region = butler.query_dimension_records("visit_detector_region", instrument="SimCam")[0].region
    wanted = np.hypot(*half) * described.pixel_scale
    assert region.getBoundingCircle().getOpeningAngle().asDegrees() * 3600 == pytest.approx(wanted, rel=1e-3)


def test_failed_files_give_status_1_and_the_others_are_ingested(
    repo: Path, night: SimulatedData, tmp_path: Path
) -> None:
    _run("obs", "register-instrument", repo, night.camera)
    good = shutil.copy(night.raw_dir / f"object_{night.visits[0]}_00.fits", tmp_path / "good.fits")
    bad = tmp_path / "bad.fits"
    bad.write_text("bad")
    result = _run("obs", "ingest-raws", repo, good, bad)
    assert result.exit_code == 1
    assert result.stdout == "1 file ingested, 0 were there already, 1 failed.\n"
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


def test_what_goes_in_is_told_as_json(repo: Path, night: SimulatedData, tmp_path: Path) -> None:
    def run(*args: object, status: int = 0) -> Any:
        result = _run("obs", *args, "--format", "json")
        assert result.exit_code == status, result.output
        return json.loads(result.stdout)

    assert run("register-instrument", repo, night.camera) == {"instrument": "SimCam", "detectors": 2}
    bad = tmp_path / "bad.fits"
    bad.write_text("bad")
    raws = run("ingest-raws", repo, night.raw_dir, bad, "-t", "direct", status=1)
    assert (raws["ingested"], raws["existing"], raws["failed"], raws["skipped"]) == (30, 0, 1, [])
    (failure,) = raws["failures"]
    assert failure["file"] == str(bad)
    assert "not a readable FITS image" in failure["reason"]
    frame = night.raw_dir / f"object_{night.visits[0]}_00.fits"
    again = run("ingest-raws", repo, frame, "-t", "direct")
    assert (again["ingested"], again["existing"]) == (0, 1)
    assert again["skipped"] == [{"instrument": "SimCam", "detector": 0, "exposure": night.visits[0]}]
    bias = run("ingest-calibs", repo, "--kind", "bias", night.raw_dir)
    assert (bias["kind"], bias["certified"]) == ("bias", 2)
    assert bias["run"].startswith("SimCam/calib/bias/")
    assert {each["detector"] for each in bias["masters"]} == {0, 1}
    visits = run("define-visits", repo, "SimCam")
    assert visits == {"instrument": "SimCam", "defined": 2, "visits": sorted(night.visits)}
    shards = run("ingest-refcats", repo, "--name", "sim", "-b", "r=r_mag,r_mag_err", night.refcat)
    assert (shards["name"], shards["run"], shards["shards"] > 0) == ("sim", "refcats/sim", True)


def _make_unwriteable(repo: Path) -> None:
    """Mark the database as of a later version, which SQLite reads and does not write, even for root."""
    with open(repo / "gen3.sqlite3", "r+b") as stream:
        stream.seek(18)
        stream.write(b"\x03")


def _fill(repo: Path, night: SimulatedData) -> list[tuple[object, ...]]:
    """Register the camera, and return the other commands that write."""
    _run("obs", "register-instrument", repo, night.camera)
    _run("obs", "ingest-raws", repo, night.raw_dir, "-t", "direct")
    return [
        ("register-instrument", repo, night.camera, "--update"),
        ("ingest-raws", repo, night.raw_dir, "-t", "direct", "--output-run", "other"),
        ("ingest-calibs", repo, "--kind", "bias", night.raw_dir),
        ("define-visits", repo, "SimCam"),
        ("ingest-refcats", repo, "--name", "sim", "-b", "r=r_mag,r_mag_err", night.refcat),
    ]


def test_repository_that_is_read_only_is_one_line(repo: Path, night: SimulatedData) -> None:
    commands = _fill(repo, night)
    _make_unwriteable(repo)
    for args in commands:
        result = _run("obs", *args)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"Error: Can't write to the Butler repository {str(repo)!r}: ")
        assert "readonly database" in line
        assert "needs write access to the database of its registry and to its datastore" in line


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied", "raw.fits"), "Permission denied"),
        (
            sqlalchemy.exc.ProgrammingError("INSERT", {}, Exception("permission denied for table")),
            "for table",
        ),
    ],
)
def test_writing_that_is_refused_in_between_is_one_line(
    repo: Path, night: SimulatedData, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("spark_butler.obs.visits.define_visits", refuse)
    result = _run("obs", "define-visits", repo, "SimCam")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output
    assert words in result.stderr
    assert "INSERT" not in result.stderr


def test_an_error_of_another_kind_is_not_taken_for_one_of_writing(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError(2, "No such file", "there")

    monkeypatch.setattr("spark_butler.obs.visits.define_visits", fail)
    assert isinstance(_run("obs", "define-visits", repo, "SimCam").exception, FileNotFoundError)


def test_simulate_writes_what_register_and_ingest_read(tmp_path: Path, repo: Path) -> None:
    result = _run("demo", "simulate", tmp_path / "data", "--visits", 1, "--detectors", 1, "--size", 64)
    assert result.exit_code == 0
    assert "14 raw frames are in" in result.stdout
    assert _run("obs", "register-instrument", repo, tmp_path / "data" / "simcam.yaml").exit_code == 0
    assert _run("obs", "ingest-raws", repo, tmp_path / "data" / "raw").exit_code == 0


def test_commands_are_imported_lazily() -> None:
    code = "import sys, spark_butler.cli.main; sys.exit(any(name.startswith('lsst') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_same_error_in_many_files_is_one_line(simcam: Butler, night: SimulatedData, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    for number in range(20):
        file = tmp_path / f"bad{number:02d}.fits"
        shutil.copy(night.raw_dir / night.raws[0].name, file)
        astropy.io.fits.setval(file, "EXPTIME", value=f"{number},5")
    (tmp_path / "notes.fits").write_text("no FITS file")
    result = _run("obs", "ingest-raws", repo, *sorted(tmp_path.glob("*.fits")))
    assert result.exit_code == 1
    errors = result.stderr.splitlines()
    assert len(errors) == 2
    assert (
        "bad00.fits: EXPTIME = '0,5' is not a number; decimal_comma: true reads decimal commas" in errors[0]
    )
    assert f"(and 19 files alike, such as {tmp_path / 'bad01.fits'})" in errors[0]


def test_broken_file_does_not_stop_calibrations_and_catalogs(
    simcam: Butler, night: SimulatedData, tmp_path: Path
) -> None:
    repo, broken = tmp_path / "repo", tmp_path / "broken.fits"
    broken.write_bytes((night.raw_dir / night.raws[0].name).read_bytes()[:8000])
    bias = _run("obs", "ingest-calibs", repo, "--kind", "bias", night.raw_dir, broken)
    assert bias.exit_code == 1, bias.output
    assert "2 bias masters certified" in bias.stdout
    assert len(bias.stderr.splitlines()) == 1
    assert f"Error: {broken}: " in bias.stderr
    given = ("--name", "cat", "-b", "r=r_mag,r_mag_err", night.refcat)
    catalog = _run("obs", "ingest-refcats", repo, *given, broken)
    assert catalog.exit_code == 1, catalog.output
    assert "of cat ingested into refcats/cat." in catalog.stdout
    assert f"Error: {broken}: " in catalog.stderr
    alone = _run("obs", "ingest-calibs", repo, "--kind", "bias", broken)
    assert (alone.exit_code, alone.stdout) == (2, "")


def test_description_that_does_not_fit_a_frame_replaces_nothing(
    simcam: Butler, night: SimulatedData, tmp_path: Path
) -> None:
    repo = tmp_path / "repo"
    assert _run("obs", "ingest-raws", repo, night.raw_dir, "--transfer", "direct").exit_code == 0
    content = yaml.safe_load(night.camera.read_text())
    header = content["header"]
    for changes, words in (
        ({"header": {**header, "exposure_time": "EXPTIM"}}, "EXPTIM is missing or blank"),
        (
            {"header": {**header, "exposure_id": {"keyword": "EXPID", "pattern": r"(\d)$"}}},
            "keep exposure_id",
        ),
        ({"match": {"INSTRUME": "^SimCan$"}}, "does not match"),
    ):
        changed = tmp_path / "changed.yaml"
        changed.write_text(yaml.safe_dump({**content, **changes}))
        result = _run("obs", "register-instrument", repo, changed, "--update")
        assert result.exit_code == 2, result.output
        assert words in result.stderr
        assert "--update" in _run("obs", "register-instrument", repo, changed).stderr
    good = tmp_path / "good.yaml"
    good.write_text(yaml.safe_dump({**content, "description": "better"}))
    assert _run("obs", "register-instrument", repo, good, "--update").exit_code == 0
