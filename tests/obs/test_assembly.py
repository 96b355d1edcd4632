from __future__ import annotations

import numpy as np
import pytest

from spark_butler.demo.simulation import make_simcam
from spark_butler.obs.assembly import RawShapeError, assemble
from spark_butler.obs.camera.description import DetectorDescription, OverscanDescription

CAMERA = make_simcam(size=64, detectors=1)
DETECTOR = CAMERA.detectors[0]


def with_overscan(**model: object) -> DetectorDescription:
    """Return the detector with another model of its overscan."""
    return DETECTOR.model_copy(update={"overscan": OverscanDescription.model_validate(model)})


def make_raw() -> np.ndarray:
    """Make a raw image: a ramp along the columns, on a level of each amplifier's own."""
    raw = np.zeros((DETECTOR.raw_ny, DETECTOR.raw_nx), dtype=np.float64)
    for number, amplifier in enumerate(DETECTOR.amplifiers):
        level = 1000.0 + 200.0 * number
        assert amplifier.raw_overscan_section is not None
        raw[amplifier.raw_overscan_section.slices] = level
        column = np.arange(amplifier.section.x_start, amplifier.section.x_stop)
        raw[amplifier.raw_data_section.slices] = level + 10.0 * column[None, :]
    return raw


@pytest.mark.parametrize("fit", ["row", "constant"])
def test_pixels_land_where_they_belong_without_their_overscan_level(fit: str) -> None:
    result = assemble(make_raw().astype(np.uint16), with_overscan(fit=fit))
    expected = np.broadcast_to(10.0 * np.arange(DETECTOR.nx)[None, :], (DETECTOR.ny, DETECTOR.nx))
    np.testing.assert_allclose(result.image, expected, atol=1e-3)
    assert result.overscan == {"A": (1000.0, 0.0), "B": (1200.0, 0.0)}
    for amplifier in DETECTOR.amplifiers:
        assert (result.gain[amplifier.section.slices] == np.float32(amplifier.gain)).all()


def test_a_row_by_row_overscan_follows_a_drift_and_a_constant_one_does_not() -> None:
    raw = make_raw() + np.linspace(0.0, 50.0, DETECTOR.raw_ny)[:, None]
    by_row = assemble(raw, with_overscan(smooth=5)).image
    constant = assemble(raw, with_overscan(fit="constant")).image
    assert np.ptp(by_row[:, 10]) < 0.1
    assert np.ptp(constant[:, 10]) == pytest.approx(50.0, rel=0.01)


def test_deviant_overscan_pixels_do_not_shift_a_row() -> None:
    raw = make_raw()
    overscan = DETECTOR.amplifiers[0].raw_overscan_section
    assert overscan is not None
    raw[20, overscan.x_start] = 60000.0
    image = assemble(raw, with_overscan(smooth=1)).image
    assert image[20, 10] == pytest.approx(100.0, abs=0.01)


def test_saturation_is_judged_in_raw_units() -> None:
    raw = make_raw()
    y, x = DETECTOR.amplifiers[1].raw_data_section.slices
    raw[y.start + 7, x.start + 3] = 60000.0
    saturated = assemble(raw, DETECTOR).saturated
    assert np.argwhere(saturated).tolist() == [[7, DETECTOR.amplifiers[1].section.x_start + 3]]


def test_a_raw_image_of_another_size_is_refused_with_both_sizes() -> None:
    with pytest.raises(RawShapeError, match="has 10 rows and 20 columns; .* says 64 and 128"):
        assemble(np.zeros((10, 20)), DETECTOR)


def test_pixels_that_pile_up_below_the_described_saturation_are_saturated() -> None:
    rng = np.random.default_rng(3)
    raw = make_raw() + rng.normal(0.0, 5.0, (DETECTOR.raw_ny, DETECTOR.raw_nx))
    y, x = DETECTOR.amplifiers[0].raw_data_section.slices
    raw[y.start : y.start + 8, x.start : x.start + 8] += np.linspace(10000.0, 50000.0, 8)[:, None]
    clipped = assemble(np.minimum(np.rint(raw), 32767).astype(np.uint16), DETECTOR)
    assert clipped.clipped == {"A": 32767.0}
    assert np.count_nonzero(clipped.saturated) == np.count_nonzero(np.rint(raw) >= 32767)
    assert assemble(np.rint(raw).astype(np.uint16), DETECTOR).clipped == {}


@pytest.mark.parametrize("mirror", ["none", "x", "y", "xy"])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("side", ["left", "right", "below", "above"])
def test_an_amplifier_may_be_mirrored_and_transposed_with_its_overscan_on_any_side(
    mirror: str, transpose: bool, side: str
) -> None:
    ny, nx, width = 6, 8, 4
    truth = np.arange(float(ny * nx)).reshape(ny, nx) * 7.0
    # What the read-out makes of the image: the way back, in the reverse order.
    stored = np.flip(truth, tuple(axis for axis, name in ((0, "y"), (1, "x")) if name in mirror))
    stored = stored.T if transpose else stored
    rows, columns = stored.shape
    beside = side in ("left", "right")
    level = 500.0 + 3.0 * np.arange(rows if beside else columns)
    level = level[:, None] if beside else level[None, :]
    extra = np.broadcast_to(level, (rows, width) if beside else (width, columns))
    parts = [extra, stored + level] if side in ("left", "below") else [stored + level, extra]
    raw = np.concatenate(parts, axis=1 if beside else 0)
    shift = width if side in ("left", "below") else 0
    dx, dy = (shift, 0) if beside else (0, shift)
    ox = (0 if shift else columns) if beside else 0
    oy = 0 if beside else (0 if shift else rows)
    amplifier = {
        "name": "A",
        "raw_data_section": f"[{dx + 1}:{dx + columns}, {dy + 1}:{dy + rows}]",
        "raw_overscan_section": f"[{ox + 1}:{ox + extra.shape[1]}, {oy + 1}:{oy + extra.shape[0]}]",
        "section": f"[1:{nx}, 1:{ny}]",
        "transpose": transpose,
        "mirror": mirror,
        "gain": 1.0,
        "read_noise": 1.0,
        "saturation": 1e5,
    }
    detector = DetectorDescription.model_validate(
        {
            "id": 0,
            "name": "d",
            "raw_nx": raw.shape[1],
            "raw_ny": raw.shape[0],
            "nx": nx,
            "ny": ny,
            "pixel_scale": 1.0,
            "overscan": {"smooth": 1},
            "amplifiers": [amplifier],
        }
    )
    np.testing.assert_allclose(assemble(raw, detector).image, truth, atol=1e-3)
