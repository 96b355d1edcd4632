"""The columns of ``source`` beside those of Rubin's published schema."""

from __future__ import annotations

import re

import astropy.units as u
import felis
import numpy as np
import pytest
from astropy.coordinates import SkyCoord

from tests.tasks.scene_harness import ZERO_POINT, Processed, make_scene, process

OURS_ALONE = {
    "instFlux": "The schema has the PSF flux after calibration only; without references ours has no other.",
    "instFluxErr": "As instFlux.",
    "snr": "The schema has it for difference images, in DiaSource.",
    "shape_flag": "The schema has flags of its algorithms; this one has the name of its table Object.",
    "blendedness": "The schema's blendedness_abs is of pixels, ours of the models.",
    "pixelFlags_badCenter": "The schema has it of cosmic rays and saturation only.",
    "refId": "The schema has no references.",
    "refFlux": "As refId.",
    "refOffset_ra": "As refId.",
    "refOffset_dec": "As refId.",
    "calib_astrometry_reserved": "The schema has it of PSF and photometry only.",
    "streak_flag": "The schema has it for difference images, as trail_flag.",
    "image_flag": "The schema has the quality of images in VisitDetector.",
    # Of the radii that the schema has, only 12 pixels is among ours.
    **{f"apFlux_{radius}_0_instFlux": "Another radius." for radius in (3, 6, 9)},
    **{f"apFlux_{radius}_0_instFluxErr": "Another radius." for radius in (3, 6, 9)},
}

OTHER_UNITS = {
    "apFlux_12_0_instFlux": "Images are in electrons; the schema has count.",
    "apFlux_12_0_instFluxErr": "As apFlux_12_0_instFlux.",
}

KINDS = {"boolean": "b", "double": "f", "float": "f", "long": "i", "int": "i", "short": "i", "char": "U"}


@pytest.fixture(scope="module")
def published() -> dict[str, felis.datamodel.Column]:
    """The columns of Rubin's Source, by name."""
    schema = felis.Schema.from_uri(
        "resource://lsst.sdm.schemas/lsstcam.yaml", context={"id_generation": True}
    )
    (table,) = (table for table in schema.tables if table.name == "Source")
    return {column.name: column for column in table.columns}


@pytest.fixture(scope="module")
def processed() -> Processed:
    # Without references the projection is that of the turned pointing.
    return process(make_scene(), references=[], boresight=(30.0, 10.0, 25.0))


def words(text: str) -> set[str]:
    """Return the beginnings of the words that matter."""
    common = {"source", "pixel", "adapt", "value", "measu", "unique"}
    return {word[:5] for word in re.findall(r"[a-z]{3,}|[xy]\b", text.lower())} - common


def test_columns_are_those_of_the_published_schema_or_known_to_be_ours_alone(
    processed: Processed, published: dict[str, felis.datamodel.Column]
) -> None:
    assert set(processed.source.colnames) - set(published) == set(OURS_ALONE)


def test_columns_have_the_units_types_and_meaning_of_the_published_schema(
    processed: Processed, published: dict[str, felis.datamodel.Column]
) -> None:
    differ = set()
    for name in set(processed.source.colnames) & set(published):
        column, theirs = processed.source[name], published[name]
        unit = theirs.ivoa_unit or theirs.fits_tunit
        if (column.unit or u.dimensionless_unscaled) != u.Unit(unit or ""):
            differ.add(name)
        assert column.dtype.kind == KINDS[theirs.datatype.value], name
        assert words(column.description) & words(theirs.description), (name, theirs.description)
    assert differ == set(OTHER_UNITS)


def test_every_column_is_described(processed: Processed) -> None:
    for name in processed.source.colnames:
        assert processed.source[name].description.endswith("."), name


def test_the_sources_of_a_footprint_have_one_parent_and_others_none(processed: Processed) -> None:
    parents, identifiers = processed.column("parentSourceId"), processed.column("sourceId")
    scene = processed.scene
    distance, index = processed.match()
    near = np.hypot(scene.x[:, None] - scene.x, scene.y[:, None] - scene.y) + 1e9 * np.eye(len(scene.x))
    # A star has light above the threshold within a FWHM; 40 pixels are beyond the wings of the brightest.
    pairs = [(a, b) for a, b in np.argwhere(near < 6.0) if (distance[[a, b]] < 1.0).all()]
    assert pairs
    for a, b in pairs:
        assert parents[index[a]] == parents[index[b]] > 0
    alone = (near.min(axis=1) > 40.0) & (distance < 1.0)
    assert np.count_nonzero(alone) > 5
    assert not parents[index[alone]].any()
    assert not set(parents.tolist()) & set(identifiers.tolist())
    assert not processed.column("deblend_nChild").any()


def test_errors_of_coordinates_are_those_of_pixels_on_the_sky(processed: Processed) -> None:
    source, projection = processed.source, processed.image.sky_projection
    x, y = processed.column("x"), processed.column("y")
    center = SkyCoord(processed.column("ra"), processed.column("dec"), unit=u.deg)
    moved = [
        center.spherical_offsets_to(projection.pixel_to_sky(x=x + dx, y=y + dy))
        for dx, dy in ((processed.column("xErr"), 0.0), (0.0, processed.column("yErr")))
    ]
    (rx, dx), (ry, dy) = ([part.deg for part in move] for move in moved)
    np.testing.assert_allclose(source["raErr"], np.hypot(rx, ry), rtol=1e-3)
    np.testing.assert_allclose(source["decErr"], np.hypot(dx, dy), rtol=1e-3)
    size = np.abs(rx * dx).max()
    # Errors that are round on the detector are round on the sky; those of blends are not.
    assert np.abs(rx * dx + ry * dy).max() > 0.01 * size
    np.testing.assert_allclose(source["ra_dec_Cov"], rx * dx + ry * dy, atol=1e-4 * size)


def test_sky_and_the_subtracted_background_are_the_light_around_sources() -> None:
    scene = make_scene(256, 150, flux=(1e3, 2e4), seed=3)
    yy, xx = np.mgrid[:256, :256]
    nebula = 60.0 * np.exp(-((xx - 130.0) ** 2 + (yy - 120.0) ** 2) / (2.0 * 20.0**2))
    scene.expected += nebula
    done = process(scene)
    rows, columns = (np.rint(done.column(name)).astype(int) for name in ("y", "x"))
    subtracted = done.image.backgrounds.subtracted.field.render(done.image.bbox).array[rows, columns]
    scale = 10.0 ** (-0.4 * (ZERO_POINT - 31.4))
    light = subtracted + done.column("sky") / scale
    near = nebula[rows, columns] > 20.0
    assert np.count_nonzero(near) > 5
    # Most of it is smaller than the cells of the subtracted sky.
    assert np.median((light - subtracted)[near]) > 5.0
    np.testing.assert_allclose(light[near], (200.0 + nebula[rows, columns])[near], rtol=0.03)
