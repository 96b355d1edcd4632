"""Simulation of a night: writes raw frames, a reference catalog, and tables of the true sources."""

from __future__ import annotations

__all__ = ("SimulatedData", "read_table", "simulate")

import dataclasses
import datetime
import os
from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np
import pyarrow.parquet
import yaml
from astropy.table import Table, vstack
from lsst.daf.butler.formatters.parquet import arrow_to_astropy, astropy_to_arrow

from ...obs.camera.description import CameraDescription, DetectorDescription
from ._camera import PHYSICAL_FILTER, make_simcam
from ._readout import (
    Electronics,
    draw_cosmic_rays,
    focal_plane_position,
    focal_plane_radius,
    read_out,
    spoil_electronics,
)
from ._render import draw_sources
from ._scenes import GOOD_NIGHT, SCENES, Scene, add_structure, draw_stars
from ._sky import CENTER, EXPOSURE_TIME, SkyCatalog, Visit, make_sky, make_visits

DAY_OBS = 20260101
_CALIBRATIONS = (("BIAS", 5, 0.0), ("DARK", 3, 60.0), ("FLAT", 5, 3.0))
_FLAT_ELECTRONS = 30000.0
_REFERENCE_LIMIT = 21.5


@dataclasses.dataclass(frozen=True)
class SimulatedData:
    """Files of a simulated night."""

    camera: Path
    """Description of the camera, for ``register-instrument``."""
    raw_dir: Path
    raws: tuple[Path, ...]
    """Frames of all kinds, named ``KIND_EXPOSURE_DETECTOR.fits``."""
    refcat: Path
    """Reference stars, with random errors: ``id``, ``ra``, ``dec`` (degrees), ``r_mag``, ``r_mag_err``."""
    truth: Path
    """Parquet table with a row for each visit, detector and source on it: ``visit``, ``detector``, ``id``,
    ``is_star``, ``x``, ``y`` (zero-based pixels of the assembled image), ``ra``, ``dec`` (degrees), ``mag``
    (AB), ``half_light_radius`` (arcseconds), ``flux`` (electrons in the exposure, where the throughput is 1),
    ``zero_point`` (magnitude of one electron once the frame is divided by a flat of median 1), ``fwhm``
    (arcseconds), ``sky`` (electrons per pixel)."""
    cosmic_rays: Path
    """Parquet table of the pixels that cosmic rays hit: ``visit``, ``detector``, ``x``, ``y``,
    ``electrons``."""
    visits: tuple[int, ...]
    """Identifiers of the science exposures."""


def simulate(
    outdir: str | os.PathLike[str],
    *,
    visits: int = 3,
    detectors: int = 4,
    size: int = 1024,
    seed: int = 1,
    stars_per_arcmin2: float = 30.0,
    galaxies_per_arcmin2: float = 15.0,
    scene: str | None = None,
) -> SimulatedData:
    """Simulate a night of SimCam.

    The same arguments give the same pixels.  With more visits, the first visits are the same.

    Parameters
    ----------
    outdir
        Directory to write to; it is created if it doesn't exist.
    visits
        Number of science exposures, in addition to 5 bias, 3 dark and 5 flat exposures.
    detectors, size
        Number of detectors, and their columns and rows.
    seed
        Seed of the random numbers.
    stars_per_arcmin2, galaxies_per_arcmin2
        Numbers of stars and galaxies per square arcminute.
    scene
        Name of one of the hostile `SCENES`; by default a good night is simulated.

    Raises
    ------
    ValueError
        Raised if there is no such scene.
    """
    if scene is not None and scene not in SCENES:
        raise ValueError(f"scene = {scene!r} is not a known scene; known are {', '.join(SCENES)}")
    faults = GOOD_NIGHT if scene is None else SCENES[scene]
    out = Path(outdir)
    raw_dir = out / "raw"
    raw_dir.mkdir(parents=True, exist_ok=True)
    camera = make_simcam(size=size, detectors=detectors)
    camera_file = out / "simcam.yaml"
    camera_file.write_text(
        yaml.safe_dump(camera.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    )
    radius = focal_plane_radius(camera) * camera.detectors[0].pixel_scale
    if faults.stars_per_megapixel is not None:
        # Pixels of 0.2 arcseconds: a megapixel is 11.65 square arcminutes.
        stars_per_arcmin2 = faults.stars_per_megapixel / (
            1048576 * camera.detectors[0].pixel_scale ** 2 / 3600.0
        )
    # Stars in this margin enter the images by the dithers, or send light into them from just outside.
    sky = make_sky(
        1.05 * radius + 15.0 + 1.1 * faults.pointing_error, stars_per_arcmin2, galaxies_per_arcmin2, seed
    )
    pointings = make_visits(visits, radius, seed)
    raws, truths, hits = [], [], []
    for detector in camera.detectors:
        rng = np.random.default_rng([seed, 6, detector.id])
        electronics = spoil_electronics(Electronics.make(camera, detector, seed), faults, rng)
        raws.extend(_write_calibrations(raw_dir, camera, detector, electronics, seed, faults))
        for visit in pointings:
            path, truth, hit = _write_science(
                raw_dir, camera, detector, electronics, sky, visit, seed, faults
            )
            raws.append(path)
            truths.append(truth)
            hits.append(hit)
    refcat, truth_file, hit_file = out / "refcat.ecsv", out / "truth.parquet", out / "cosmic_rays.parquet"
    _reference_catalog(sky, seed).write(refcat, overwrite=True)
    pyarrow.parquet.write_table(astropy_to_arrow(vstack(truths)), truth_file)
    pyarrow.parquet.write_table(astropy_to_arrow(vstack(hits)), hit_file)
    return SimulatedData(
        camera=camera_file,
        raw_dir=raw_dir,
        raws=tuple(sorted(raws)),
        refcat=refcat,
        truth=truth_file,
        cosmic_rays=hit_file,
        visits=tuple(_exposure_id(101 + visit.index) for visit in pointings),
    )


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read one of the Parquet tables that `simulate` writes."""
    return arrow_to_astropy(pyarrow.parquet.read_table(path))


def _exposure_id(sequence: int) -> int:
    return DAY_OBS * 10_000 + sequence


def _write_calibrations(
    raw_dir: Path,
    camera: CameraDescription,
    detector: DetectorDescription,
    electronics: Electronics,
    seed: int,
    scene: Scene,
) -> list[Path]:
    paths = []
    sequence = 0
    for kind, count, seconds in _CALIBRATIONS:
        for _ in range(count):
            sequence += 1
            rng = np.random.default_rng([seed, 3, sequence, detector.id])
            expected = electronics.dark_rate * seconds + electronics.hot
            if kind == "FLAT":
                expected = expected + _FLAT_ELECTRONS * electronics.throughput
            # At such counts the normal distribution is as accurate as Poisson's, and faster to draw.
            noise = np.sqrt(expected) * rng.standard_normal(expected.shape, dtype=np.float32)
            electrons = expected + noise if kind == "FLAT" else rng.poisson(expected)
            if kind == "DARK":
                electrons = electrons + draw_cosmic_rays(expected.shape, seconds, rng)
            pixels = read_out(electrons, detector, electronics, rng, scene)
            paths.append(_write(raw_dir, pixels, camera, detector, kind, sequence, seconds, target=kind))
    return paths


def _write_science(
    raw_dir: Path,
    camera: CameraDescription,
    detector: DetectorDescription,
    electronics: Electronics,
    sky: SkyCatalog,
    visit: Visit,
    seed: int,
    scene: Scene,
) -> tuple[Path, Table, Table]:
    rng = np.random.default_rng([seed, 4, visit.index, detector.id])
    scale = detector.pixel_scale
    shape = (detector.ny, detector.nx)
    wcs = scene.true_wcs(camera.initial_wcs(detector.id, visit.ra, visit.dec, visit.rotation), shape)
    x, y = wcs.all_world2pix(sky.ra, sky.dec, 0)
    x, y = scene.distort(x, y, shape)
    flux = 10.0 ** (0.4 * (visit.zero_point - sky.mag))
    near = (x > -100) & (x < detector.nx + 100) & (y > -100) & (y < detector.ny + 100)
    fx, fy = focal_plane_position(camera, detector)
    gradient = 1.0 + visit.sky_gradient[0] * fx + visit.sky_gradient[1] * fy
    light = visit.sky * visit.transparency * EXPOSURE_TIME * scale**2 * gradient
    background = float(np.median(light))
    add_structure(light, scene, rng)
    if scene.has_own_psf:
        near &= sky.is_star
        draw_stars(light, x[near], y[near], flux[near], scene, visit.fwhm / scale)
    else:
        draw_sources(
            light,
            x=x[near],
            y=y[near],
            flux=flux[near],
            fwhm=visit.fwhm / scale,
            radius=sky.half_light_radius[near] / scale,
            axis_ratio=sky.axis_ratio[near],
            angle=_pixel_angle(wcs, sky, x, y)[near],
        )
    expected = light * electronics.throughput + electronics.dark_rate * EXPOSURE_TIME + electronics.hot
    tracks = draw_cosmic_rays(light.shape, EXPOSURE_TIME, rng)
    pixels = read_out(rng.poisson(expected) + tracks, detector, electronics, rng, scene)
    sequence = 101 + visit.index
    path = _write(
        raw_dir, pixels, camera, detector, "OBJECT", sequence, EXPOSURE_TIME, target="SIM1", visit=visit
    )
    if scene.has_own_psf:
        # Galaxies were not drawn, so they are not in the table of true sources.
        x = np.where(sky.is_star, x, np.nan)
    key = {"visit": _exposure_id(sequence), "detector": detector.id}
    numbers = {
        "zero_point": visit.zero_point + 2.5 * np.log10(float(np.median(electronics.throughput))),
        # In the middle of the image.
        "fwhm": (scene.fwhm * scale if scene.fwhm else visit.fwhm) * (1.0 + 0.5 * scene.fwhm_change),
        "sky": background,
    }
    return path, _truth_table(sky, detector, x, y, flux, key, numbers), _hit_table(tracks, key)


def _truth_table(
    sky: SkyCatalog,
    detector: DetectorDescription,
    x: Any,
    y: Any,
    flux: Any,
    key: dict[str, int],
    numbers: dict[str, float],
) -> Table:
    """Return the table of the sources that were drawn on a detector."""
    on = (x >= -0.5) & (x < detector.nx - 0.5) & (y >= -0.5) & (y < detector.ny - 0.5)
    return Table(
        {
            **{name: np.full(on.sum(), value) for name, value in key.items()},
            **{name: getattr(sky, name)[on] for name in ("id", "is_star", "ra", "dec", "mag")},
            **{"x": x[on], "y": y[on], "flux": flux[on], "half_light_radius": sky.half_light_radius[on]},
            **{name: np.full(on.sum(), value) for name, value in numbers.items()},
        }
    )


def _hit_table(tracks: Any, key: dict[str, int]) -> Table:
    """Return the table of the pixels that cosmic rays hit."""
    rows, columns = np.nonzero(tracks)
    hits = Table({"x": columns, "y": rows, "electrons": tracks[rows, columns]})
    for index, (name, value) in enumerate(key.items()):
        hits.add_column(np.full(len(hits), value), name=name, index=index)
    return hits


def _pixel_angle(wcs: Any, sky: SkyCatalog, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the direction of the major axes on the detector, from pixel x to pixel y, in radians."""
    step, angle = 1.0 / 3600.0, np.deg2rad(sky.position_angle)
    ra = sky.ra + step * np.sin(angle) / np.cos(np.deg2rad(sky.dec))
    x1, y1 = wcs.all_world2pix(ra, sky.dec + step * np.cos(angle), 0)
    return np.asarray(np.arctan2(y1 - y, x1 - x))


def _write(  # noqa: PLR0913
    raw_dir: Path,
    pixels: np.ndarray,
    camera: CameraDescription,
    detector: DetectorDescription,
    kind: str,
    sequence: int,
    seconds: float,
    *,
    target: str,
    visit: Visit | None = None,
) -> Path:
    hdu = astropy.io.fits.PrimaryHDU(pixels)
    start = datetime.datetime(2026, 1, 1, 20) + datetime.timedelta(seconds=90 * sequence)
    ra, dec, rotation = (*CENTER, 0.0) if visit is None else (visit.ra, visit.dec, visit.rotation)
    for keyword, value, comment in (
        ("TELESCOP", "Simulated", "telescope"),
        ("INSTRUME", camera.name, "instrument"),
        ("EXPID", _exposure_id(sequence), "exposure identifier"),
        ("OBSID", f"SC_{DAY_OBS}_{sequence:04d}", "exposure name"),
        ("SEQNUM", sequence, "number in the night"),
        ("DETID", detector.id, "detector identifier"),
        ("DETNAME", detector.name, "detector name"),
        ("IMGTYPE", kind, "kind of the exposure"),
        ("DATE-OBS", start.isoformat(timespec="milliseconds"), "[UTC] start of the exposure"),
        ("EXPTIME", seconds, "[s] exposure time"),
        ("FILTER", camera.get_filter("r").header_values[0], PHYSICAL_FILTER),
        ("OBJECT", target, "target"),
        ("PROGRAM", "simulation", "program"),
        ("RADESYS", "ICRS", "of RA and DEC"),
        ("RA", ra, "[deg] boresight"),
        ("DEC", dec, "[deg] boresight"),
        ("ROTPA", rotation, "[deg] position angle of focal-plane y"),
    ):
        hdu.header[keyword] = (value, comment)
    path = raw_dir / f"{kind.lower()}_{_exposure_id(sequence)}_{detector.id:02d}.fits"
    hdu.writeto(path, overwrite=True, checksum=True)
    return path


def _reference_catalog(sky: SkyCatalog, seed: int) -> Table:
    rng = np.random.default_rng([seed, 5])
    chosen = np.flatnonzero(sky.is_star & (sky.mag < _REFERENCE_LIMIT))
    mas = 1e-3 / 3600.0
    position_error = np.where(sky.mag[chosen] < 19.0, 5.0, 10.0) * mas
    mag_error = np.where(sky.mag[chosen] < 19.0, 0.005, 0.01)
    dra, ddec, dmag = rng.standard_normal((3, len(chosen)))
    return Table(
        {
            "id": sky.id[chosen],
            "ra": sky.ra[chosen] + dra * position_error / np.cos(np.deg2rad(sky.dec[chosen])),
            "dec": sky.dec[chosen] + ddec * position_error,
            "r_mag": sky.mag[chosen] + dmag * mag_error,
            "r_mag_err": mag_error,
        }
    )
