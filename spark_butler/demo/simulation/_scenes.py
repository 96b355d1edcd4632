"""Hostile scenes: simulated nights with faults of the optics, sky, detector or pointing.

GalSim draws the point-spread functions of these scenes, so that the simulation shares no code with the
pipeline that measures them.
"""

from __future__ import annotations

__all__ = ("GOOD_NIGHT", "SCENES", "Scene", "add_structure", "draw_stars")

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import astropy.wcs
import galsim
import numpy as np


@dataclasses.dataclass(frozen=True)
class Scene:
    """Differences of a scene from a good night; by default there are none."""

    meaning: str
    fwhm: float | None = None
    """FWHM of the point-spread function in pixels; by default the seeing of the visit."""
    fwhm_change: float = 0.0
    """Relative change of the FWHM from the left to the right edge."""
    shear: tuple[float, float] = (0.0, 0.0)
    beta: float = 3.0
    donut: tuple[float, float] | None = None
    """Outer and inner radius of a defocused pupil in pixels."""
    trail: float = 0.0
    """Distance in pixels by which the telescope moved along x during the exposure."""
    stars_per_megapixel: float | None = None
    galaxy: bool = False
    nebula: bool = False
    satellite: bool = False
    overscan_ramp: float = 0.0
    """Rise of the bias level from the first to the last row, in ADU."""
    flat_range: tuple[float, float] | None = None
    """Least and largest response, relative to the median."""
    hot_columns: int = 0
    dead_fraction: float = 0.0
    glow: float = 0.0
    """Electrons that the glow of an amplifier adds in the corner."""
    full_well: float | None = None
    """Raw ADU at which pixels saturate, in place of the level of the camera's description."""
    nonlinearity: float = 0.0
    """Fraction by which a signal of 50,000 electrons appears too small."""
    distortion: float = 0.0
    """Distance in pixels by which a third-order distortion moves the corners."""
    pointing_error: float = 0.0
    """Error of the declination in the header, in arcseconds."""
    rotation_error: float = 0.0
    """Error of the rotation in the header, in degrees."""
    scale_error: float = 0.0
    """Relative error of the pixel scale in the header."""
    mirrored: bool = False

    @property
    def has_own_psf(self) -> bool:
        """Whether GalSim draws the stars."""
        return bool(self.fwhm or self.fwhm_change or any(self.shear) or self.donut or self.trail)

    def true_wcs(self, wcs: astropy.wcs.WCS, shape: tuple[int, int]) -> astropy.wcs.WCS:
        """Return the WCS of the true pointing; ``wcs`` is the one in the header."""
        if self is GOOD_NIGHT:
            return wcs
        true = wcs.deepcopy()
        angle = np.deg2rad(self.rotation_error)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        flip = np.diag([-1.0 if self.mirrored else 1.0, 1.0])
        center = np.array([0.5 * (shape[1] - 1), 0.5 * (shape[0] - 1)])
        # The rotation is about the middle of the image, so that the image still contains the same stars.
        true.wcs.crval = np.array(wcs.all_pix2world(*center, 0)) + [0.0, self.pointing_error / 3600.0]
        true.wcs.crpix = center + 1.0
        true.wcs.cd = (1.0 + self.scale_error) * wcs.pixel_scale_matrix @ turn @ flip
        true.wcs.set()
        return true

    def distort(self, x: np.ndarray, y: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the distorted positions."""
        center = np.array([0.5 * (shape[1] - 1), 0.5 * (shape[0] - 1)])
        u, v = (x - center[0]) / np.hypot(*center), (y - center[1]) / np.hypot(*center)
        radial = self.distortion * (u**2 + v**2)
        return x + radial * u, y + radial * v


GOOD_NIGHT = Scene("No faults.")

SCENES: Mapping[str, Scene] = MappingProxyType(
    {
        "overscan_ramp": Scene("The bias level drifts by 60 ADU along the columns.", overscan_ramp=60.0),
        "vignetted": Scene("The response falls from 1.3 to 0.5.", flat_range=(0.5, 1.3)),
        "varying_psf": Scene(
            "An elliptical PSF whose width changes by half.", fwhm=3.0, fwhm_change=0.5, shear=(0.08, -0.05)
        ),
        "undersampled": Scene("A FWHM of 1.2 pixels.", fwhm=1.2, beta=4.0),
        "oversampled": Scene("A FWHM of 12 pixels.", fwhm=12.0),
        "defocused": Scene("Stars are rings.", fwhm=2.5, donut=(10.0, 4.0)),
        "trailed": Scene("The telescope moved by 12 pixels.", fwhm=3.0, trail=12.0),
        "dense": Scene("3,000 stars in a megapixel.", stars_per_megapixel=3000.0),
        "crowded": Scene("10,000 stars in a megapixel.", stars_per_megapixel=10000.0),
        "packed": Scene("30,000 stars in a megapixel.", stars_per_megapixel=30000.0),
        "galaxy": Scene("A galaxy fills the frame.", galaxy=True),
        "nebula": Scene("Clouds of all sizes.", nebula=True),
        "satellite": Scene("A satellite crosses.", satellite=True),
        "hot_columns": Scene("Hot columns that no defect list names.", hot_columns=4),
        "dead_pixels": Scene("Three per cent of the pixels are dead.", dead_fraction=0.03),
        "glow": Scene("An amplifier glows in the corner.", glow=2000.0),
        "nonlinear": Scene("50,000 electrons lose eight per cent.", nonlinearity=0.08),
        "low_saturation": Scene("Pixels saturate at half the described level.", full_well=30000.0),
        "distorted": Scene("Corners are ten pixels off.", distortion=10.0),
        "mispointed": Scene(
            "60 arcseconds, 10 degrees and 5 per cent of scale off, and distorted.",
            pointing_error=60.0,
            rotation_error=10.0,
            scale_error=0.05,
            distortion=10.0,
        ),
        "mirrored": Scene("The image is a mirror image of the described one.", mirrored=True),
    }
)


def draw_stars(
    image: np.ndarray, x: np.ndarray, y: np.ndarray, flux: np.ndarray, scene: Scene, fwhm: float
) -> None:
    """Add stars, as the optics of the scene show them, to an image; ``fwhm`` is the seeing in pixels."""
    width = image.shape[1]
    target = galsim.ImageD(image, xmin=0, ymin=0)
    for a, b, f in zip(x, y, flux, strict=True):
        here = (scene.fwhm or fwhm) * (1.0 + scene.fwhm_change * (a / width))
        star: galsim.GSObject = galsim.Moffat(beta=scene.beta, fwhm=here).shear(
            g1=scene.shear[0], g2=scene.shear[1]
        )
        if scene.donut is not None:
            outer, inner = scene.donut
            ring = galsim.TopHat(outer, flux=outer**2) - galsim.TopHat(inner, flux=inner**2)
            star = galsim.Convolve(star, ring.withFlux(1.0))
        if scene.trail:
            star = galsim.Convolve(star, galsim.Box(scene.trail, 0.01))
        half = int(6.0 * here + scene.trail + (scene.donut[0] if scene.donut else 0.0)) + 8
        i, j = round(float(a)), round(float(b))
        bounds = galsim.BoundsI(i - half, i + half, j - half, j + half) & target.bounds
        if bounds.isDefined():
            part = target[bounds]
            star.withFlux(f).drawImage(
                part, scale=1.0, center=galsim.PositionD(float(a), float(b)), add_to_image=True
            )


def add_structure(light: np.ndarray, scene: Scene, rng: np.random.Generator) -> None:
    """Add the galaxy, nebula or satellite of a scene to an image in place."""
    ny, nx = light.shape
    y, x = np.mgrid[:ny, :nx]
    if scene.galaxy:
        radius = np.hypot(x - 0.5 * nx, (y - 0.5 * ny) / 0.7)
        light += 400.0 * np.exp(-7.67 * ((radius / (0.2 * nx)) ** 0.25 - 1.0)).clip(max=100.0)
    if scene.nebula:
        # The power falls with the cube of the frequency, about as in interstellar clouds.
        frequency = np.hypot(np.fft.fftfreq(ny)[:, None], np.fft.rfftfreq(nx)[None, :])
        frequency[0, 0] = 1.0
        cloud = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(light.shape)) / frequency**1.5, light.shape)
        light += 300.0 * np.clip(cloud / cloud.std(), 0.0, None)
    if scene.satellite:
        light += 400.0 * np.exp(-0.5 * (((x - 0.5 * nx) * 0.5 - (y - 0.5 * ny) * 0.866) / 1.6) ** 2)
