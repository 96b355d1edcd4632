from __future__ import annotations

import astropy.io.fits
import astropy.wcs
import numpy as np
import pytest

from spark_butler.demo.simulation import make_simcam
from spark_butler.obs.camera.description import DetectorDescription
from spark_butler.obs.camera.header_wcs import header_wcs


def make_detector(prescan: int = 20) -> DetectorDescription:
    """Return a detector of one amplifier behind a prescan."""
    section = {"raw_data_section": f"[{prescan + 1}:{prescan + 100}, 1:80]", "section": "[1:100, 1:80]"}
    amplifier = {"name": "A", "gain": 1.0, "read_noise": 5.0, "saturation": 6e4, **section}
    return DetectorDescription.model_validate(
        {
            "id": 0,
            "name": "d",
            "raw_nx": prescan + 100,
            "raw_ny": 80,
            "nx": 100,
            "ny": 80,
            "pixel_scale": 0.36,
            "amplifiers": [amplifier],
        }
    )


CARDS = {
    "CTYPE1": "RA---TAN",
    "CTYPE2": "DEC--TAN",
    "CRVAL1": 150.0,
    "CRVAL2": 20.0,
    "CRPIX1": 71.0,
    "CRPIX2": 41.0,
    "CD1_1": -1e-4,
    "CD1_2": 0.0,
    "CD2_1": 0.0,
    "CD2_2": 1e-4,
    "RADESYS": "ICRS",
    "OBJECT": None,
}


def test_the_prescan_is_taken_off_the_reference_pixel() -> None:
    wcs = header_wcs(CARDS, make_detector())
    assert wcs is not None
    np.testing.assert_allclose(wcs.all_pix2world(50.0, 40.0, 0), (150.0, 20.0), atol=1e-9)


@pytest.mark.parametrize("mosaic", [None, {"pattern": "RGGB", "color": "B"}])
def test_distortions_follow_the_pixels(mosaic: dict[str, str] | None) -> None:
    distorted = {
        **CARDS,
        **{"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 3, "B_ORDER": 2},
        **{"A_2_0": 1e-3, "A_0_3": 2e-5, "A_1_0": 1e-3, "B_1_1": -2e-3},
    }
    header = astropy.io.fits.Header({key: value for key, value in distorted.items() if value is not None})
    whole = astropy.wcs.WCS(header)
    detector = DetectorDescription.model_validate({**make_detector().model_dump(), "mosaic": mosaic})
    wcs = header_wcs(distorted, detector)
    assert wcs is not None
    x, y = np.meshgrid(np.arange(0.0, 50.0, 7.0), np.arange(0.0, 40.0, 7.0))
    raw = (x + 20.0, y) if mosaic is None else (2.0 * x + 21.0, 2.0 * y + 1.0)
    expected = whole.all_pix2world(*raw, 0)
    assert np.ptp(expected[0] - whole.wcs_pix2world(*raw, 0)[0]) > 1e-4
    np.testing.assert_allclose(wcs.all_pix2world(x, y, 0), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "change", [{"CTYPE1": "LINEAR"}, {"CD1_1": -3e-4}, {"CD1_1": 0.0, "CD2_2": 0.0}, {"RADESYS": "FK4"}]
)
def test_a_projection_that_does_not_fit_is_not_believed(change: dict[str, object]) -> None:
    assert header_wcs({**CARDS, **change}, make_detector()) is None


def test_amplifiers_with_gaps_between_them_have_no_common_projection() -> None:
    detector = make_simcam(size=64, detectors=1).detectors[0]
    assert header_wcs({**CARDS, "CD1_1": -5.5e-5, "CD2_2": 5.5e-5}, detector) is None
