"""process_ccd by pipetask, by the serial and by the Spark backend, with and without temporaries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.spatial
from astropy.table import Table
from click.testing import CliRunner, Result
from lsst.ctrl.mpexec.cli.pipetask import cli as pipetask
from lsst.daf.butler import DatasetRef
from lsst.daf.butler.cli.cliLog import CliLog
from lsst.images import MaskedImage
from pyspark.sql import SparkSession

from tests.support.night_harness import PIPELINE, Night

RunNight = Callable[..., Result]

PRODUCTS = {"visit_image", "source", "visit_summary"}
INTERMEDIATES = {"post_isr_image", "preliminary_visit_image", "preliminary_source", "detector_summary"}
ALWAYS = ("_metadata", "_log", "_config")


@pytest.fixture(scope="module")
def reference(simulated: Night) -> str:
    """Output of ``pipetask run``."""
    arguments = ["run", "-b", str(simulated.repo), "-i", "SimCam/defaults", "-o", "u/pipetask"]
    arguments += ["-p", str(PIPELINE), "-d", "instrument='SimCam'", "--register-dataset-types"]
    result = CliRunner().invoke(pipetask, arguments)
    CliLog.resetLog()
    assert result.exit_code == 0, result.output
    return "u/pipetask"


@pytest.fixture(scope="module", params=[pytest.param("serial", marks=pytest.mark.slow), "spark"])
def stored(request: pytest.FixtureRequest, simulated: Night, run_night: RunNight, spark: SparkSession) -> str:
    """Output of a run that stores everything."""
    return _run(simulated, run_night, f"u/{request.param}", "--backend", request.param)


@pytest.fixture(scope="module", params=["fused", pytest.param("quantum", marks=pytest.mark.slow)])
def temporary(
    request: pytest.FixtureRequest, simulated: Night, run_night: RunNight, spark: SparkSession
) -> str:
    """Output of a run on Spark that stores products only."""
    option = "--isolation" if request.param == "quantum" else "--group-by"
    arguments = ["--temporary", "auto", option, request.param]
    return _run(simulated, run_night, f"u/temporary-{request.param}", *arguments)


def _run(night: Night, run_night: RunNight, output: str, *arguments: str) -> str:
    result = run_night(night, output, *arguments)
    assert result.exit_code == 0, result.output
    return output


def _datasets(night: Night, output: str) -> dict[tuple[str, object], DatasetRef]:
    butler = night.open(output)
    run = butler.collections.get_info(output).children[0]
    return {
        (name, ref.dataId): ref
        for name in {t.name for t in butler.registry.queryDatasetTypes()}
        for ref in butler.query_datasets(name, collections=run, explain=False)
    }


def _assert_same_products(night: Night, one: str, two: str) -> None:
    first, second = _datasets(night, one), _datasets(night, two)
    with night.open(one) as butler:
        keys = [key for key in first if key[0] in PRODUCTS]
        assert {key[0] for key in keys} == PRODUCTS
        for key in keys:
            a, b = butler.get(first[key]), butler.get(second[key])
            if isinstance(a, MaskedImage):
                np.testing.assert_array_equal(a.image.array, b.image.array)
                np.testing.assert_array_equal(a.variance.array, b.variance.array)
                np.testing.assert_array_equal(a.mask.array, b.mask.array)
            else:
                assert isinstance(a, Table)
                assert a.colnames == b.colnames
                assert len(a)
                for name in a.colnames:
                    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_same_datasets_pixels_and_tables_as_pipetask(simulated: Night, reference: str, stored: str) -> None:
    assert _datasets(simulated, reference).keys() == _datasets(simulated, stored).keys()
    _assert_same_products(simulated, reference, stored)


def test_temporaries_change_nothing_in_the_products(simulated: Night, reference: str, temporary: str) -> None:
    _assert_same_products(simulated, reference, temporary)


def test_only_products_are_left_in_the_bucket(simulated: Night, reference: str, temporary: str) -> None:
    kept = {name for name, _ in _datasets(simulated, temporary) if not name.endswith(ALWAYS)}
    assert kept == PRODUCTS | {"packages"}
    with simulated.open(temporary) as butler:
        run = butler.collections.get_info(temporary).children[0]
    folders = {name for name in simulated.list_folders(run) if not name.endswith(ALWAYS)}
    assert PRODUCTS <= folders
    assert not folders & INTERMEDIATES
    assert not simulated.list_folders("spark-butler-scratch")
    with simulated.open(reference) as butler:
        run = butler.collections.get_info(reference).children[0]
    assert INTERMEDIATES <= simulated.list_folders(run)


def test_a_damaged_frame_fails_alone(simulated: Night, run_night: RunNight, spark: SparkSession) -> None:
    with simulated.open("SimCam/raw/all") as butler:
        ref = min(
            butler.query_datasets("raw", where="instrument='SimCam' AND exposure.observation_type='science'"),
            key=lambda ref: (ref.dataId["exposure"], ref.dataId["detector"]),
        )
        uri = butler.getURI(ref)
    whole = uri.read()
    uri.write(whole[: len(whole) // 2])
    try:
        result = run_night(simulated, "u/damaged")
    finally:
        uri.write(whole)
    assert result.exit_code == 1, result.output
    (failure,) = (line for line in result.output.splitlines() if line.startswith("FAILED"))
    assert "isr" in failure
    assert uri.basename() in failure
    found = [key for key in _datasets(simulated, "u/damaged") if key[0] == "source"]
    assert len(found) == 3


@pytest.mark.slow
def test_real_frames_become_catalogs(observed: Night, run_night: RunNight, spark: SparkSession) -> None:
    output = _run(observed, run_night, "u/observed", "--temporary", "auto")
    with observed.open(output) as butler:
        refs = sorted(butler.query_datasets("source"), key=lambda ref: ref.dataId["visit"])
        tables = [butler.get(ref) for ref in refs]
    assert len(tables) == 5
    assert all(len(table) >= 250 for table in tables)
    flags = ("psfFlux_flag", "centroid_flag", "pixelFlags_edge", "pixelFlags_saturated")
    clean = [table[~np.any([table[name] for name in flags], axis=0)] for table in tables]
    first = clean[0][clean[0]["snr"] > 50.0]
    place = np.column_stack([first["x"], first["y"]])
    for other in clean[1:]:
        distance, index = scipy.spatial.cKDTree(np.column_stack([other["x"], other["y"]])).query(place)
        pair = distance < 1.5
        assert np.count_nonzero(pair) >= 60
        difference = -2.5 * np.log10(first["instFlux"][pair] / other["instFlux"][index[pair]])
        difference -= np.median(difference)
        assert 1.4826 * np.median(np.abs(difference)) <= 0.04


def test_parts_of_an_image_are_read_from_the_store(
    simulated: Night, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAF_BUTLER_CACHE_EXPIRATION_MODE", "disabled")
    with simulated.open(reference) as butler:
        ref = min(butler.query_datasets("visit_image"), key=lambda ref: ref.dataId["detector"])
        whole = butler.get(ref)
        assert butler.get(ref.makeComponentRef("summary_stats")) == whole.summary_stats
        box = whole.bbox.factory[10:20, 30:50]
        part = butler.get(ref, parameters={"bbox": box})
        np.testing.assert_array_equal(part.image.array, whole[box].image.array)
