"""Scenes made by numpy and astropy, processed by the tasks without a butler."""

from __future__ import annotations

import dataclasses
from typing import Any

import astropy.table
import astropy.units as u
import numpy as np
import scipy.spatial
from astro_metadata_translator import makeObservationInfo
from lsst.images import Image
from lsst.pipe.base import InMemoryDatasetHandle

from spark_butler.obs.camera.description import CameraDescription
from spark_butler.tasks.calibrate import CalibrateTask
from spark_butler.tasks.characterize import CharacterizeTask
from spark_butler.tasks.isr import IsrTask

GAIN, READ_NOISE, BIAS, ZERO_POINT, SCALE = 1.5, 5.0, 1000.0, 26.0, 0.3


@dataclasses.dataclass
class Scene:
    """Expected electrons, and the stars in them."""

    expected: np.ndarray
    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray

    def raw(self, seed: int = 1, *, bias: float = BIAS) -> np.ndarray:
        """Return a raw frame in ADU."""
        rng = np.random.default_rng(seed)
        electrons = rng.poisson(np.maximum(self.expected, 0.0)) + rng.normal(
            0.0, READ_NOISE, self.expected.shape
        )
        return np.clip(np.rint(electrons / GAIN + bias), 0, 65535).astype(np.uint16)


def make_camera(size: int, **amplifier: float) -> CameraDescription:
    """Return a camera of one amplifier without overscan."""
    section = f"[1:{size}, 1:{size}]"
    described = {
        "name": "A",
        "raw_data_section": section,
        "section": section,
        "gain": GAIN,
        "read_noise": READ_NOISE,
        "saturation": 60000.0,
        **amplifier,
    }
    fields = "exposure_id detector image_type date_begin exposure_time physical_filter ra dec".split()
    return CameraDescription.from_dict(
        {
            "name": "Scene",
            "filters": [{"name": "r", "band": "r"}],
            "image_types": {"science": ["x"]},
            "calibrations": [],
            "header": {name: {"constant": 1} for name in fields},
            "detectors": [
                {
                    "id": 0,
                    "name": "d",
                    "raw_nx": size,
                    "raw_ny": size,
                    "nx": size,
                    "ny": size,
                    "pixel_scale": SCALE,
                    "amplifiers": [described],
                }
            ],
        }
    )


def make_scene(
    size: int = 512,
    count: int = 120,
    *,
    fwhm: float = 3.5,
    change: float = 0.0,
    beta: float = 3.0,
    sky: float = 200.0,
    flux: tuple[float, float] = (1e3, 2e5),
    seed: int = 7,
) -> Scene:
    """Return stars on a flat sky; the FWHM grows by ``change`` pixels from left to right."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, size - 1, (2, count))
    fluxes = np.exp(rng.uniform(*np.log(flux), count))
    radius = int(6 * (fwhm + change)) + 4
    expected = np.full((size + 2 * radius, size + 2 * radius), sky)
    # Nine points in each pixel.
    fine = (np.arange(3 * (2 * radius + 1)) - 3 * radius - 1) / 3.0
    for a, b, f in zip(x, y, fluxes, strict=True):
        i, j = round(a), round(b)
        gamma2 = 0.25 * (fwhm + change * a / size) ** 2 / (2.0 ** (1.0 / beta) - 1.0)
        squared = (fine[None, :] + i - a) ** 2 + (fine[:, None] + j - b) ** 2
        stamp = (beta - 1.0) / (np.pi * gamma2) * (1.0 + squared / gamma2) ** -beta
        side = 2 * radius + 1
        expected[j : j + side, i : i + side] += f * stamp.reshape(side, 3, side, 3).mean(axis=(1, 3))
    return Scene(expected[radius:-radius, radius:-radius], x, y, fluxes)


def make_references(camera: CameraDescription, scene: Scene, *, scatter: float = 0.005) -> list[Any]:
    """Return a reference catalog of the stars at their true places."""
    ra, dec = camera.initial_wcs(0, 30.0, 10.0, 0.0).all_pix2world(scene.x, scene.y, 0)
    noise = np.random.default_rng(3).normal(0.0, scatter, len(scene.x))
    table = astropy.table.Table(
        {
            "id": np.arange(len(ra)),
            "coord_ra": np.deg2rad(ra),
            "coord_dec": np.deg2rad(dec),
            "r_flux": scene.flux * 10.0 ** (-0.4 * (ZERO_POINT - 31.4 + noise)),
        }
    )
    return [InMemoryDatasetHandle(table, storageClass="ArrowAstropy")]


@dataclasses.dataclass
class Processed:
    """Outputs of the tasks for a scene."""

    source: astropy.table.Table
    summary: astropy.table.Row
    image: Any
    scene: Scene

    def column(self, name: str) -> np.ndarray:
        return np.asarray(self.source[name])

    def match(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each true star's distance to the nearest source in pixels, and which source that is."""
        tree = scipy.spatial.cKDTree(np.column_stack([self.column("x"), self.column("y")]))
        distance, index = tree.query(np.column_stack([self.scene.x, self.scene.y]))
        return np.asarray(distance), np.asarray(index)


def process(
    scene: Scene,
    *,
    raw: np.ndarray | None = None,
    camera: CameraDescription | None = None,
    flat: np.ndarray | None = None,
    references: list[Any] | None = None,
    characterize: dict[str, Any] | None = None,
    calibrate: dict[str, Any] | None = None,
    boresight: tuple[float, float, float] = (30.0, 10.0, 0.0),
) -> Processed:
    """Run isr, characterize and calibrate on a scene."""
    camera = make_camera(len(scene.expected)) if camera is None else camera
    raw = scene.raw(bias=0.0) if raw is None else raw
    info = makeObservationInfo(
        instrument="Scene",
        exposure_id=1,
        visit_id=1,
        physical_filter="r",
        exposure_time=30 * u.s,
        detector_num=0,
    )
    isr = IsrTask(config=IsrTask.ConfigClass())
    post = isr.run(
        Image(raw), camera, detector=0, flat=None if flat is None else Image(flat), boresight=boresight
    ).post_isr_image
    config = CharacterizeTask.ConfigClass()
    config.update(**(characterize or {}))
    found = CharacterizeTask(config=config).run(post, camera, detector=0, band="r", obs_info=info)
    config = CalibrateTask.ConfigClass()
    for name, value in (calibrate or {}).items():
        owner, _, field = name.rpartition(".")
        setattr(getattr(config, owner) if owner else config, field, value)
    done = CalibrateTask(config=config).run(
        found.preliminary_visit_image,
        found.preliminary_source,
        make_references(camera, scene) if references is None else references,
    )
    return Processed(done.source, done.detector_summary[0], done.visit_image, scene)
