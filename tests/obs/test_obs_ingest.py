from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import astropy.io.fits
import numpy as np
import pytest
import yaml
from lsst.daf.butler import Butler
from lsst.pipe.base import Instrument
from lsst.sphgeom import LonLat, UnitVector3d

from spark_butler.demo.simulation import SimulatedData, make_simcam, read_table
from spark_butler.errors import RepositoryError, UserError
from spark_butler.obs import CameraDescription, YamlInstrument
from spark_butler.obs.raws import ingest_raws
from spark_butler.obs.register import register_instrument
from spark_butler.obs.repository import get_description, writing_butler
from spark_butler.obs.visits import define_visits


def test_instrument_is_made_from_the_registry_alone(simcam: Butler) -> None:
    instrument = Instrument.fromName("SimCam", simcam.registry)
    assert isinstance(instrument, YamlInstrument)
    assert instrument.getName() == "SimCam"
    assert instrument.makeDefaultRawIngestRunName() == "SimCam/raw/all"
    data_id = simcam.registry.expandDataId(instrument="SimCam")
    assert type(Instrument.from_data_id(data_id)) is type(instrument)
    assert type(Instrument.from_string("spark_butler.obs.instruments.SimCam")) is type(instrument)
    with pytest.raises(TypeError, match="without its description"):
        instrument.register(simcam.registry)


def test_registered_records_and_camera_are_those_described(simcam: Butler, night: SimulatedData) -> None:
    camera = CameraDescription.from_yaml(night.camera)
    assert get_description(simcam, "SimCam") == camera
    assert simcam.get("camera", instrument="SimCam", collections="SimCam/defaults")["name"] == "SimCam"
    detectors = simcam.query_dimension_records("detector", instrument="SimCam")
    assert {(d.id, d.full_name) for d in detectors} == {(0, "S00"), (1, "S01")}
    filters = simcam.query_dimension_records("physical_filter", instrument="SimCam")
    assert {(f.name, f.band) for f in filters} == {("sim_r", "r"), ("none", "none")}
    assert simcam.collections.get_info("SimCam/defaults").children == (
        "SimCam/raw/all",
        "SimCam/calib",
        "SimCam/calib/unbounded",
        "refcats",
    )


def test_registering_again_changes_nothing_but_another_description_must_be_wanted(
    simcam: Butler, night: SimulatedData, tmp_path: Path
) -> None:
    before = simcam.find_dataset("camera", instrument="SimCam", collections="SimCam/calib/unbounded")
    register_instrument(simcam, night.camera)
    after = simcam.find_dataset("camera", instrument="SimCam", collections="SimCam/calib/unbounded")
    assert before == after
    changed = make_simcam(size=512, detectors=3)
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(changed.model_dump(mode="json")))
    with pytest.raises(RepositoryError, match="another description of SimCam"):
        register_instrument(simcam, path)
    assert len(simcam.query_dimension_records("detector", instrument="SimCam")) == 2
    register_instrument(simcam, path, update=True)
    assert get_description(simcam, "SimCam") == changed
    assert len(simcam.query_dimension_records("detector", instrument="SimCam")) == 3


def test_two_instruments_share_a_repository(
    simcam: Butler, night: SimulatedData, cameras: Path, tmp_path: Path
) -> None:
    register_instrument(simcam, cameras / "opd_ixon.yaml")
    result = ingest_raws(simcam, [night.raw_dir / f"object_{night.visits[0]}_00.fits"])
    assert [ref.dataId["instrument"] for ref in result.ingested] == ["SimCam"]
    wrong = ingest_raws(simcam, [night.raw_dir / f"object_{night.visits[0]}_01.fits"], instrument="OPD-Ixon")
    (reason,) = wrong.failures.values()
    assert "TELESCOP = 'Simulated' does not match" in reason


def test_exposures_have_what_the_headers_say(ingested: Butler, night: SimulatedData) -> None:
    records = {r.id: r for r in ingested.query_dimension_records("exposure", instrument="SimCam")}
    assert len(records) == 2 + 5 + 3 + 5
    header = astropy.io.fits.getheader(night.raw_dir / f"object_{night.visits[0]}_00.fits")
    science = records[night.visits[0]]
    assert science.observation_type == "science"
    assert science.physical_filter == "sim_r"
    assert science.exposure_time == header["EXPTIME"]
    assert science.tracking_ra == header["RA"]
    assert science.tracking_dec == header["DEC"]
    assert science.sky_angle == header["ROTPA"]
    assert science.day_obs == 20260101
    assert science.timespan.begin.utc.isot.startswith(header["DATE-OBS"])
    kinds = [record.observation_type for record in records.values()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"science": 2, "bias": 5, "dark": 3, "flat": 5}
    bias = next(record for record in records.values() if record.observation_type == "bias")
    assert bias.physical_filter == "none"
    assert bias.tracking_ra is None
    assert not bias.timespan.isEmpty()


def test_ingesting_twice_leaves_the_repository_as_it_is(simcam: Butler, night: SimulatedData) -> None:
    first = ingest_raws(simcam, [night.raw_dir], transfer="direct")
    again = ingest_raws(simcam, [night.raw_dir], transfer="direct")
    assert len(first.ingested) == len(night.raws) == 30
    assert not first.failures
    assert not again.ingested
    assert {ref.id for ref in again.existing} == {ref.id for ref in first.ingested}
    assert define_visits(simcam, "SimCam") == list(night.visits)
    assert define_visits(simcam, "SimCam") == []


def test_copies_stay_when_the_originals_go(simcam: Butler, night: SimulatedData, tmp_path: Path) -> None:
    original = Path(shutil.copy(night.raw_dir / f"object_{night.visits[0]}_00.fits", tmp_path / "one.fits"))
    (ref,) = ingest_raws(simcam, [original], transfer="copy").ingested
    expected = astropy.io.fits.getdata(original)
    original.unlink()
    np.testing.assert_array_equal(simcam.get(ref).array, expected)


@pytest.fixture
def mixed(tmp_path: Path, night: SimulatedData) -> Path:
    """Good files among bad ones."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    names = [path.name for path in night.raws if path.name.startswith("object")]
    for name in names:
        shutil.copy(night.raw_dir / name, folder / name)
    (folder / "notes.fits").write_text("no FITS file")
    for label, keyword, value in (
        ("filter", "FILTER", "purple"),
        ("kind", "IMGTYPE", "PIZZA"),
        ("detector", "DETID", 9),
        ("date", "DATE-OBS", "yesterday"),
        ("exptime", "EXPTIME", None),
        ("camera", "INSTRUME", "OtherCam"),
    ):
        shutil.copy(night.raw_dir / names[0], folder / f"{label}.fits")
        with astropy.io.fits.open(folder / f"{label}.fits", mode="update") as hdus:
            if value is None:
                del hdus[0].header[keyword]
            else:
                hdus[0].header[keyword] = value
    return folder


def test_bad_files_are_named_and_the_good_ones_ingested(simcam: Butler, mixed: Path) -> None:
    result = ingest_raws(simcam, [mixed], transfer="direct")
    assert len(result.ingested) == 4
    assert {Path(name).stem: text.replace(str(mixed), "") for name, text in result.failures.items()} == {
        "camera": "/camera.fits: not from a registered instrument "
        "(SimCam: INSTRUME = 'OtherCam' does not match '^SimCam$' of its key match)",
        "date": "/date.fits: DATE-OBS = 'yesterday' is not a time in isot; time_format, pattern or join (of "
        "a day and a time in two cards) read other forms",
        "detector": "/detector.fits: SimCam has no detector '9'; it has 0 (S00), 1 (S01)",
        "exptime": "/exptime.fits: exposure_time: EXPTIME is missing or blank in the header",
        "filter": "/filter.fits: SimCam has no filter 'purple' in its headers; it has r; add the name to the "
        "header_values of its filter",
        "kind": "/kind.fits: image type 'PIZZA' is not one of SimCam's: OBJECT, BIAS, DARK, FLAT; "
        "add it to image_types (under unknown if it has no use)",
        "notes": "/notes.fits: not a readable FITS image: No SIMPLE card found, this file does not appear to "
        "be a valid FITS file",
    }


def test_fail_fast_writes_nothing(simcam: Butler, mixed: Path) -> None:
    with pytest.raises(UserError, match=r"camera\.fits"):
        ingest_raws(simcam, [mixed], fail_fast=True)
    assert not simcam.query_dimension_records("exposure", instrument="SimCam", explain=False)


def test_files_of_one_exposure_must_agree(simcam: Butler, night: SimulatedData, tmp_path: Path) -> None:
    for detector in (0, 1):
        name = f"object_{night.visits[0]}_{detector:02d}.fits"
        shutil.copy(night.raw_dir / name, tmp_path / name)
    shutil.copy(tmp_path / f"object_{night.visits[0]}_00.fits", tmp_path / "twice.fits")
    with astropy.io.fits.open(tmp_path / f"object_{night.visits[0]}_01.fits", mode="update") as hdus:
        hdus[0].header["EXPTIME"] = 31.0
    result = ingest_raws(simcam, [tmp_path / "object*.fits", tmp_path / "twice.fits"])
    assert len(result.ingested) == 1
    reasons = " ".join(result.failures.values())
    assert "exposure_time = 31.0 where" in reasons
    assert f"exposure {night.visits[0]} detector 0 is also in" in reasons


def test_exposure_that_differs_from_the_repositorys_is_refused(
    simcam: Butler, night: SimulatedData, tmp_path: Path
) -> None:
    ingest_raws(simcam, [night.raw_dir / f"object_{night.visits[0]}_00.fits"])
    path = Path(shutil.copy(night.raw_dir / f"object_{night.visits[0]}_01.fits", tmp_path / "changed.fits"))
    with astropy.io.fits.open(path, mode="update") as hdus:
        hdus[0].header["EXPTIME"] = 31.0
    result = ingest_raws(simcam, [path])
    assert not result.ingested
    assert "the repository has another exposure" in result.failures[str(path)]


@pytest.mark.parametrize("given", ["nowhere.fits", "*.nothing", "empty"])
def test_paths_that_stand_for_nothing_are_named(simcam: Butler, tmp_path: Path, given: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"{given}: no such file".replace("*", r"\*")):
        ingest_raws(simcam, [tmp_path / given])


def test_repository_or_instrument_that_is_absent_is_named(
    tmp_path: Path, butler: Butler, night: SimulatedData
) -> None:
    nowhere = writing_butler(tmp_path / "nowhere")
    with pytest.raises(RepositoryError, match="no Butler repository at .*nowhere"), nowhere:
        pass
    with pytest.raises(RepositoryError, match="no instrument with a camera description"):
        ingest_raws(butler, [night.raw_dir])
    with pytest.raises(RepositoryError, match="'Nonesuch' is not registered .*; there is none"):
        define_visits(butler, "Nonesuch")


def test_visit_regions_hold_the_sources_that_their_detectors_see(
    ingested: Butler, night: SimulatedData
) -> None:
    truth = read_table(night.truth)
    visits = {v.id: v for v in ingested.query_dimension_records("visit", instrument="SimCam")}
    assert sorted(visits) == list(night.visits)
    regions = {
        (r.visit, r.detector): r.region
        for r in ingested.query_dimension_records("visit_detector_region", instrument="SimCam")
    }
    assert len(regions) == 4
    for row in truth:
        point = UnitVector3d(LonLat.fromDegrees(row["ra"], row["dec"]))
        assert regions[row["visit"], row["detector"]].contains(point)
        assert visits[row["visit"]].region.contains(point)
    # The padding is 50 pixels, the gap between the detectors less than twice that: a source that is well
    # inside one detector is not in the other.
    far = truth[(truth["detector"] == 0) & (truth["x"] > 60) & (truth["x"] < 180)]
    assert len(far) > 0
    for row in far:
        point = UnitVector3d(LonLat.fromDegrees(row["ra"], row["dec"]))
        assert not regions[row["visit"], 1].contains(point)


def test_visits_join_exposures_by_definition_and_system(ingested: Butler, night: SimulatedData) -> None:
    definitions = ingested.query_dimension_records("visit_definition", instrument="SimCam")
    assert {(d.exposure, d.visit) for d in definitions} == {(v, v) for v in night.visits}
    memberships = ingested.query_dimension_records("visit_system_membership", instrument="SimCam")
    assert {(m.visit_system, m.visit) for m in memberships} == {(0, v) for v in night.visits}
    (system,) = ingested.query_dimension_records("visit_system", instrument="SimCam")
    assert system.name == "one-to-one"
    # The joins that a quantum graph needs: visit to raw, and visit to reference catalog by overlap.
    with ingested.query() as query:
        ids = query.join_dimensions(["visit", "exposure", "detector"]).join_dataset_search(
            "raw", "SimCam/raw/all"
        )
        assert len(list(ids.data_ids(["visit", "detector"]))) == 4
        overlaps = query.join_dimensions(["visit", "detector", "htm7"]).join_dataset_search(
            "sim_refcat", "refcats"
        )
        assert {d["visit"] for d in overlaps.data_ids(["visit", "detector", "htm7"])} == set(night.visits)


@pytest.mark.parametrize(
    ("where", "expected"),
    [("exposure = 3", "no science exposure"), ("exposur = 3", "exposur"), ("exposure =", "parse")],
)
def test_where_that_selects_nothing_or_is_wrong_is_explained(
    simcam: Butler, night: SimulatedData, where: str, expected: str
) -> None:
    ingest_raws(simcam, [night.raw_dir / f"object_{night.visits[0]}_00.fits"])
    with pytest.raises(UserError, match=expected) as caught:
        define_visits(simcam, "SimCam", where=where)
    assert where in str(caught.value)


def test_where_narrows_the_visits(simcam: Butler, night: SimulatedData) -> None:
    ingest_raws(simcam, [night.raw_dir / "object*_00.fits"])
    assert define_visits(simcam, "SimCam", where=f"exposure = {night.visits[1]}") == [night.visits[1]]


def test_real_camera_goes_through_the_same_calls(
    butler: Butler, cameras: Path, real_data: Callable[[str], Path]
) -> None:
    folder = real_data("opd_ngc346")
    camera = register_instrument(butler, cameras / "opd_ixon.yaml")
    result = ingest_raws(butler, [folder], transfer="direct")
    assert (len(result.ingested), result.failures) == (15, {})
    visits = define_visits(butler, camera.name)
    assert visits == [190201232509, 190201232543, 190201232617, 190201232650, 190201232724]
    exposure = butler.query_dimension_records("exposure", instrument=camera.name, exposure=visits[0])[0]
    assert exposure.exposure_time == 30.0
    assert exposure.physical_filter == "V"
    assert exposure.tracking_ra == pytest.approx(15 * (59 / 60 + 26 / 3600))
    assert exposure.tracking_dec == pytest.approx(-(72 + 9 / 60 + 53 / 3600))
    raw = butler.get(
        "raw", instrument=camera.name, exposure=visits[0], detector=0, collections="OPD-Ixon/raw/all"
    )
    np.testing.assert_array_equal(raw.array, astropy.io.fits.getdata(folder / "HD5980_V_0.fits"))


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("EXPTIME", "nan", r"EXPTIME = 'nan' is not a finite number"),
        ("EXPTIME", 1e9, r"exposure_time = 1000000000.0 is not within"),
        ("RA", 3756.3, r"RA gives 3756.3 degrees, which is not within -180 and 360"),
        ("DEC", 95.0, r"DEC gives 95 degrees, which is not within -90 and 90"),
        ("EXPID", 1e300, r"exposure_id"),
    ],
)
def test_header_value_out_of_range_names_the_file_and_spares_the_others(
    simcam: Butler, night: SimulatedData, tmp_path: Path, keyword: str, value: object, reason: str
) -> None:
    files = [shutil.copy(night.raw_dir / f"object_{visit}_00.fits", tmp_path) for visit in night.visits]
    with astropy.io.fits.open(files[0], mode="update") as hdus:
        hdus[0].header[keyword] = value
    result = ingest_raws(simcam, [tmp_path], transfer="direct")
    assert [ref.dataId["exposure"] for ref in result.ingested] == [night.visits[1]]
    ((name, text),) = result.failures.items()
    assert name == str(files[0])
    assert re.search(reason, text)
