"""Masters, defects, photon transfer and linearity, from simulated frames of known truth and real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import astropy.io.fits
import astropy.table
import numpy as np
import pytest
import yaml
from lsst.daf.butler import Butler, Timespan
from lsst.images import Image
from lsst.resources import ResourcePath

from spark_butler.errors import UserError
from spark_butler.obs import CameraDescription
from spark_butler.obs.calibs import ingest_calibs
from spark_butler.obs.camera.defects import find_defects, read_defects, sections_of, to_mask, to_table
from spark_butler.obs.masters import CalibrationKind, correct_frame, make_master, pixels_of
from spark_butler.obs.photon_transfer import PhotonTransferError, fit_linearity
from spark_butler.obs.raws import ingest_raws
from spark_butler.obs.register import register_instrument
from spark_butler.tasks.cp_measure import CpFrame, PhotonTransferCurveSolveTask
from spark_butler.tasks.isr import IsrTask
from tests.tasks.scene_harness import GAIN, READ_NOISE, make_camera

NX, NY, OVERSCAN = 120, 128, 16
GAINS, NOISES = (1.6, 2.3), (6.0, 9.0)
DARK = 0.5  # electrons per second
BENT = -2e-6  # of the squared signal in ADU
HOT, DEAD = [(20, 30), (90, 200)], [(64, 64), (5, 150)]
SECONDS = (1.0, 2.0, 4.0, 8.0, 14.0, 20.0)
RATE = 3000.0  # electrons per second


def describe() -> dict[str, Any]:
    """Return a camera of two amplifiers side by side, each with an overscan on its right."""
    amplifiers = []
    for n in range(len(GAINS)):
        start = n * (NX + OVERSCAN)
        amplifiers.append(
            {
                "name": f"A{n}",
                "raw_data_section": f"[{start + 1}:{start + NX}, 1:{NY}]",
                "raw_overscan_section": f"[{start + NX + 1}:{start + NX + OVERSCAN}, 1:{NY}]",
                "section": f"[{n * NX + 1}:{(n + 1) * NX}, 1:{NY}]",
                # What a header or a data sheet might say.
                **{"gain": 2.0, "read_noise": 7.0, "saturation": 60000.0},
            }
        )
    fields = "physical_filter ra dec".split()
    return {
        "name": "Lab",
        "filters": [{"name": "1", "band": "r"}],
        "image_types": {kind: [kind] for kind in ("bias", "dark", "flat", "science")},
        "header": {
            **{name: {"constant": 1} for name in fields},
            **{"exposure_id": "EXPID", "image_type": "KIND", "exposure_time": "EXPTIME"},
            **{"detector": {"constant": 0}, "date_begin": {"constant": "2026-01-01T00:00:00"}},
        },
        "detectors": [
            {
                **{"id": 0, "name": "d", "raw_nx": 2 * (NX + OVERSCAN), "raw_ny": NY, "nx": 2 * NX, "ny": NY},
                **{"pixel_scale": 1.0, "amplifiers": amplifiers},
            }
        ],
    }


def read_out(electrons: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the raw frame of expected electrons."""
    parts = []
    for n, (gain, noise) in enumerate(zip(GAINS, NOISES, strict=True)):
        signal = rng.poisson(electrons[:, n * NX : (n + 1) * NX]) / gain
        signal = signal + BENT * signal**2
        level = np.hstack([signal, np.zeros((NY, OVERSCAN))]) + 1000.0 + 50.0 * n
        parts.append(level + rng.normal(0.0, noise / gain, level.shape))
    return np.rint(np.hstack(parts)).clip(0, 65535).astype(np.uint16)


def expect(kind: str, seconds: float) -> np.ndarray:
    """Return the expected electrons of a frame."""
    electrons = np.full((NY, 2 * NX), DARK * seconds)
    for y, x in HOT:
        electrons[y, x] += 100.0 * seconds
    if kind == "flat":
        light = np.full((NY, 2 * NX), RATE * seconds)
        for y, x in DEAD:
            light[y, x] *= 0.3
        electrons += light
    return electrons


def write_frames(folder: Path) -> list[tuple[int, str, float]]:
    """Write biases, darks and flats; return number, kind and seconds of each."""
    rng = np.random.default_rng(11)
    plan = [("bias", 0.0)] * 6 + [("dark", 100.0)] * 4
    plan += [("flat", seconds) for seconds in SECONDS for _ in range(2)]
    frames = []
    for number, (kind, seconds) in enumerate(plan, start=1):
        hdu = astropy.io.fits.PrimaryHDU(read_out(expect(kind, seconds), rng))
        hdu.header.update({"EXPID": number, "KIND": kind, "EXPTIME": seconds})
        hdu.writeto(folder / f"{number:02d}_{kind}.fits", checksum=True)
        frames.append((number, kind, seconds))
    return frames


@pytest.mark.slow
def test_pipelines_make_masters_gains_linearity_and_defects(
    tmp_path: Path, pipelines: Path, process: Callable[..., str]
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    write_frames(raw)
    # A file that breaks off, and a bias with light on it.
    (raw / "01_bias.fits").write_bytes((raw / "01_bias.fits").read_bytes()[:20_000])
    with astropy.io.fits.open(raw / "02_bias.fits", mode="update") as hdus:
        hdus[0].data[:, :NX] += np.linspace(0, 500, NX).astype(np.uint16)
        hdus[0].add_checksum()
    repo = str(tmp_path / "repo")
    Butler.makeRepo(repo)
    butler = Butler.from_config(repo, writeable=True)
    path = tmp_path / "camera.yaml"
    path.write_text(yaml.safe_dump(describe()))
    register_instrument(butler, path)
    assert len(ingest_raws(butler, [raw], transfer="direct").ingested) == 22

    def make(name: str, where: str, product: str) -> Any:
        where = f"instrument='Lab' AND {where}"
        run = process(repo, pipelines / f"cp_{name}.yaml", ["Lab/defaults"], f"u/cp/{name}", where=where)
        found = Butler.from_config(repo, collections=run)
        refs = found.query_datasets(product)
        butler.registry.certify("Lab/calib", refs, Timespan(None, None))
        (ref,) = refs
        return found.get(ref), found

    def of(*kinds: str) -> str:
        return f"exposure.observation_type IN ({', '.join(map(repr, kinds))})"

    bias, found = make("bias", of("bias"), "bias")
    # One is broken, one is bright: four of six are combined, and both have left a record.
    assert (bias.metadata["NCOMBINE"], bias.metadata["NEXCLUDE"]) == (4, 1)
    (record,) = found.get("cpBiasCombine_metadata", instrument="Lab", detector=0)["cpBiasCombine"].getArray(
        "excluded"
    )
    assert record.startswith("exposure 2: differs from every other bias frame")
    for n, amplifier in enumerate((slice(0, NX), slice(NX, None))):
        expected = (NOISES[n] ** 2 / GAINS[n] ** 2 + 1.0 / 12.0) / 4.0
        assert np.median(bias.variance.array[:, amplifier]) == pytest.approx(expected, rel=0.1)
    assert np.std(bias.image.array) < 1.2 * NOISES[1] / GAINS[1] / 2.0 + 0.2
    dark, _ = make("dark", of("dark"), "dark")
    assert np.median(dark.image.array[:, :NX]) == pytest.approx(DARK / GAINS[0], rel=0.1)
    linearizer, _ = make("linearizer", of("flat"), "linearizer")
    flat, _ = make("flat", of("flat"), "flat")
    assert np.median(flat.image.array) == pytest.approx(1.0, abs=1e-3)
    # Both amplifiers saw the same light; without the linearizer this ratio is wrong by a per cent.
    ratio = np.median(flat.image.array[:, :NX]) / np.median(flat.image.array[:, NX:])
    assert ratio == pytest.approx(GAINS[1] / GAINS[0], rel=2e-3)
    ptc, _ = make("ptc", of("flat", "bias"), "ptc")
    for row, gain, noise in zip(ptc, GAINS, NOISES, strict=True):
        assert row["gain"] == pytest.approx(gain, rel=0.05)
        assert abs(row["gain"] - gain) < 5.0 * row["gain_error"]
        assert row["noise"] == pytest.approx(noise, rel=0.05)
    defects, _ = make("defects", of("dark", "flat"), "defects")
    assert np.argwhere(to_mask(defects, (NY, 2 * NX))).tolist() == sorted(map(list, HOT + DEAD))
    # All of them together: electrons of a frame that none has seen.
    frame = read_out(expect("flat", 16.0), np.random.default_rng(99))
    post = IsrTask(config=IsrTask.ConfigClass()).run(
        Image(frame),
        CameraDescription.from_dict(describe()),
        detector=0,
        **{"bias": bias, "dark": dark, "linearizer": linearizer, "defects": defects, "ptc": ptc},
        exposure_time=16.0,
    )
    image = post.post_isr_image
    for n, gain in enumerate(GAINS):
        level = np.median(image.image.array[:, n * NX : (n + 1) * NX])
        assert level == pytest.approx(RATE * 16.0 * ptc["gain"][n] / gain, rel=0.005)
    assert image.mask.get("BAD")[HOT[0]]


def test_frame_that_agrees_with_no_other_is_left_out_of_a_master() -> None:
    rng = np.random.default_rng(5)
    frames = {f"frame {n}": rng.normal(1000.0, 5.0, (60, 50)).astype(np.float32) for n in range(5)}
    frames["frame 3"] += np.linspace(0.0, 200.0, 50, dtype=np.float32)
    master, excluded = make_master("bias", frames)
    assert list(excluded) == ["frame 3"]
    assert master.metadata["NCOMBINE"] == 4
    # The variance of a mean of four.
    assert master.metadata["VARIANCE"] == pytest.approx(25.0 / 4.0, rel=0.1)
    assert np.var(master.image.array) == pytest.approx(master.metadata["VARIANCE"], rel=0.15)
    alike = {name: frame for name, frame in frames.items() if name != "frame 3"}
    assert make_master("bias", alike)[1] == {}


@pytest.mark.parametrize(("count", "plain"), [(2, False), (5, False), (2, True)])
def test_variance_of_an_image_includes_that_of_its_masters(count: int, plain: bool) -> None:
    size, seconds, current, light = 200, 30.0, 20.0, 30_000.0
    camera, rng = make_camera(size), np.random.default_rng(8)
    response = np.linspace(0.7, 1.3, size)[None, :] * np.ones((size, 1))
    masters: dict[str, Any] = {}

    def read(electrons: np.ndarray) -> np.ndarray:
        signal = rng.poisson(electrons) + rng.normal(0.0, READ_NOISE, (size, size))
        return np.rint(signal / GAIN + 500.0).astype(np.uint16)

    def make(kind: CalibrationKind, electrons: np.ndarray, time: float) -> None:
        corrections = {name: pixels_of(master) for name, master in masters.items()}
        frames = {
            str(n): correct_frame(
                kind, read(electrons), {}, camera, detector=0, seconds=time, corrections=corrections
            )
            for n in range(count)
        }
        masters[kind] = make_master(kind, frames)[0]

    nothing = np.zeros((size, size))
    make("bias", nothing, 0.0)
    make("dark", nothing + 20.0 * current, 20.0)
    make("flat", light * response + current, 1.0)
    if plain:
        masters = {name: master.image for name, master in masters.items()}
    for expected in (0.0, 5_000.0):
        image = (
            IsrTask(config=IsrTask.ConfigClass())
            .run(
                Image(read(expected * response + current * seconds)),
                camera,
                detector=0,
                exposure_time=seconds,
                **masters,
            )
            .post_isr_image
        )
        pull = np.std((image.image.array - expected) / np.sqrt(image.variance.array))
        if plain:
            # Without a variance of the masters, that of the image lacks their part.
            assert pull > 1.05
        else:
            assert pull == pytest.approx(1.0, abs=0.03)


def test_saturated_flat_and_dark_without_time_are_refused() -> None:
    camera = CameraDescription.from_dict(describe())
    full = np.full((NY, 2 * (NX + OVERSCAN)), 65535, dtype=np.uint16)
    with pytest.raises(UserError, match="100% of the pixels of a flat are saturated"):
        correct_frame("flat", full, {}, camera, detector=0, seconds=1.0, corrections={})
    with pytest.raises(UserError, match=r"a dark frame of 0\.0 s"):
        correct_frame("dark", full, {}, camera, detector=0, seconds=0.0, corrections={})


LINEARIZER = astropy.table.Table(
    # The inverse of s + BENT s^2 as a power series.
    {"amplifier": ["A0", "A1"]}
    | {f"c{k}": [c * (-BENT) ** (k - 1)] * 2 for k, c in ((2, 1.0), (3, 2.0), (4, 5.0), (5, 14.0))}
)


def read_vignetted(number: int) -> np.ndarray:
    """Return the raw frame of a flat whose lower half gets half of the light."""
    light = np.full((NY, 2 * NX), 45_000.0)
    light[: NY // 2] *= 0.5
    return read_out(light, np.random.default_rng(number))


def test_flats_are_made_of_linearized_signals() -> None:
    camera = CameraDescription.from_dict(describe())

    def make(linearizer: astropy.table.Table | None) -> np.ndarray:
        return correct_frame(
            "flat",
            read_vignetted(1),
            {},
            camera,
            detector=0,
            seconds=1.0,
            corrections={},
            linearizer=linearizer,
        )

    for amplifier in (slice(0, NX), slice(NX, None)):
        bent, straight = (
            flat[: NY // 2, amplifier].mean() / flat[NY // 2 :, amplifier].mean()
            for flat in (make(None), make(LINEARIZER))
        )
        assert bent > 0.51
        assert straight == pytest.approx(0.5, abs=3e-4)


def test_ingest_calibs_applies_the_linearizer_that_is_certified(tmp_path: Path) -> None:
    Butler.makeRepo(str(tmp_path / "repo"))
    butler = Butler.from_config(str(tmp_path / "repo"), writeable=True)
    (tmp_path / "camera.yaml").write_text(yaml.safe_dump({**describe(), "calibrations": ["flat"]}))
    register_instrument(butler, tmp_path / "camera.yaml")
    for number in (1, 2, 3):
        hdu = astropy.io.fits.PrimaryHDU(read_vignetted(number))
        hdu.header.update({"EXPID": number, "KIND": "flat", "EXPTIME": 15.0})
        hdu.writeto(tmp_path / f"{number}.fits")
    butler.collections.register("u/linearizer")
    ref = butler.put(LINEARIZER, "linearizer", instrument="Lab", detector=0, run="u/linearizer")
    butler.registry.certify("Lab/calib", [ref], Timespan(None, None))
    (master,) = ingest_calibs(butler, "flat", [tmp_path])
    flat = butler.get(master).image.array
    assert flat[: NY // 2, :NX].mean() / flat[NY // 2 :, :NX].mean() == pytest.approx(0.5, abs=3e-4)


def _real_frames(folder: Path) -> list[CpFrame]:
    frames = []
    for kind, stem in (("bias", "BIAS_2x2"), ("flat", "FLAT_2x2_V")):
        for n in range(5):
            pixels = astropy.io.fits.getdata(folder / f"{stem}_{n}.fits").astype(np.float32)
            frames.append(CpFrame(f"{stem} {n}", kind, "V", 5.0, pixels))
    level = np.median([frame.pixels for frame in frames if frame.kind == "bias"], axis=0)
    for frame in frames:
        if frame.kind == "flat":
            frame.pixels[...] -= level
    return frames


def test_photon_transfer_of_real_frames_agrees_with_an_independent_one(
    shared_data: Path,
) -> None:
    camera = CameraDescription.from_yaml(Path(__file__).parents[2] / "conf" / "cameras" / "opd_ixon.yaml")
    frames = _real_frames(shared_data / "opd_ngc346")
    task = PhotonTransferCurveSolveTask(config=PhotonTransferCurveSolveTask.ConfigClass())
    (row,) = task.run(frames, camera, detector=0).product
    # Measured by hand from the same frames: 1.41 electrons per ADU, 7.1 to 7.4 electrons.
    assert row["gain"] == pytest.approx(1.41, rel=0.1)
    assert row["noise"] == pytest.approx(7.25, rel=0.1)
    with pytest.raises(PhotonTransferError, match="amplifier conventional of detector 0: 1 bias frames"):
        task.run(frames[4:], camera, detector=0)


def test_polynomial_makes_a_bent_signal_proportional() -> None:
    seconds = np.array([1, 1, 2, 2, 4, 4, 8, 8, 15, 15, 22, 22], dtype=float)
    light = 2000.0 * seconds * np.random.default_rng(2).normal(1.0, 3e-4, seconds.size)
    signal = light - 1.5e-6 * light**2 - 1e-11 * light**3
    coefficients, scatter = fit_linearity(signal, seconds)
    corrected = signal + sum(c * signal**power for power, c in enumerate(coefficients, start=2))
    # Linearity leaves the scale open: it is that of faint light.
    np.testing.assert_allclose(corrected / light, 1.0, atol=3e-3)
    assert scatter < 3e-3
    with pytest.raises(PhotonTransferError, match="flats of 2 exposure times; .* order 3 needs 5"):
        fit_linearity([1.0, 2.0], [1.0, 2.0])


def test_defects_survive_tables_and_images(tmp_path: Path) -> None:
    mask = np.zeros((40, 30), dtype=bool)
    mask[5:20, 7] = mask[5:20, 8] = mask[25, 10:14] = mask[39, 29] = mask[0, 0] = True
    sections = sections_of(mask)
    assert len(sections) == 4
    np.testing.assert_array_equal(to_mask(to_table(sections), mask.shape), mask)
    to_table(sections).write(tmp_path / "lsst.fits")
    to_table(sections).write(tmp_path / "lsst.ecsv")
    rows = [(s.x_start + 1, s.x_stop, s.y_start + 1, s.y_stop) for s in sections]
    fits_like = astropy.table.Table(rows=rows, names=["X1", "X2", "Y1", "Y2"])
    fits_like.write(tmp_path / "corners.csv")
    pixels = astropy.table.Table([column + 1 for column in np.nonzero(mask)[::-1]], names=["x", "y"])
    pixels.write(tmp_path / "pixels.csv")
    astropy.io.fits.PrimaryHDU(mask.astype(np.uint8)).writeto(tmp_path / "mask.fits")
    for name in ("lsst.fits", "lsst.ecsv", "corners.csv", "pixels.csv", "mask.fits"):
        read = to_table(read_defects(ResourcePath(tmp_path / name)))
        np.testing.assert_array_equal(to_mask(read, mask.shape), mask, err_msg=name)
    (tmp_path / "other.csv").write_text("ra,dec\n1,2\n")
    with pytest.raises(UserError, match=r"other\.csv: columns ra, dec; defects have one of: x0, y0"):
        read_defects(ResourcePath(tmp_path / "other.csv"))
    (tmp_path / "zero.csv").write_text("x,y\n0,5\n")
    with pytest.raises(UserError, match=r"zero\.csv: row 1 is no rectangle of pixels: x = 0, y = 5"):
        read_defects(ResourcePath(tmp_path / "zero.csv"))


def test_column_that_is_mostly_dead_is_bad_as_a_whole() -> None:
    flat = np.ones((100, 60), dtype=np.float32)
    flat[20:90:2, 30] = 0.1
    mask = find_defects(dark=None, flat=flat, hot_sigma=10.0, dead_fraction=0.25, column_fraction=0.3)
    assert np.argwhere(mask[:, 30]).ravel().tolist() == list(range(20, 89))
    assert mask.sum() == 69
