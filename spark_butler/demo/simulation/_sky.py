"""Simulated sky, and the conditions of each visit."""

from __future__ import annotations

__all__ = ("SkyCatalog", "Visit", "make_sky", "make_visits")

import dataclasses

import numpy as np

CENTER = (150.1, 2.2)
"""ICRS position of the field's center in degrees."""

ZERO_POINT = 26.0
"""AB magnitude of a source that gives one electron per second without atmospheric extinction."""

EXPOSURE_TIME = 30.0
"""Exposure time in seconds."""


@dataclasses.dataclass(frozen=True)
class SkyCatalog:
    """Sources of the sky; each attribute is an array with one element per source, stars first."""

    id: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    """Right ascension and declination (ICRS) in degrees."""
    mag: np.ndarray
    """AB magnitude."""
    is_star: np.ndarray
    half_light_radius: np.ndarray
    """Half-light radius along the major axis, in arcseconds; 0 for stars."""
    axis_ratio: np.ndarray
    position_angle: np.ndarray
    """Position angle of the major axis, from north through east, in degrees."""


@dataclasses.dataclass(frozen=True)
class Visit:
    """Pointing and conditions of one science exposure."""

    index: int
    ra: float
    dec: float
    rotation: float
    """Pointing in degrees."""
    fwhm: float
    """Seeing in arcseconds."""
    transparency: float
    sky: float
    """Sky brightness at the boresight, in electrons per second and square arcsecond."""
    sky_gradient: tuple[float, float]
    """Relative change of the sky brightness across the focal plane, along x and y."""

    @property
    def zero_point(self) -> float:
        """AB magnitude of a source that gives one electron in this exposure, where the throughput is 1."""
        return float(ZERO_POINT + 2.5 * np.log10(self.transparency * EXPOSURE_TIME))


def make_visits(count: int, radius: float, seed: int) -> list[Visit]:
    """Draw the conditions of visits at random; those of the first visits don't depend on ``count``.

    Dithers are some per cent of the radius of the focal plane, which is in arcseconds.
    """
    visits = []
    for index in range(count):
        rng = np.random.default_rng([seed, 1, index])
        dx, dy = rng.uniform(-0.04, 0.04, 2) * radius / 3600.0
        visits.append(
            Visit(
                index=index,
                ra=CENTER[0] + dx / np.cos(np.deg2rad(CENTER[1])),
                dec=CENTER[1] + dy,
                rotation=float(rng.uniform(-0.5, 0.5)),
                fwhm=float(rng.uniform(0.75, 1.1)),
                transparency=float(rng.uniform(0.75, 1.0)),
                sky=float(100.0 * rng.uniform(0.9, 1.3)),
                sky_gradient=(float(rng.uniform(-0.04, 0.04)), float(rng.uniform(-0.04, 0.04))),
            )
        )
    return visits


def make_sky(radius: float, stars_per_arcmin2: float, galaxies_per_arcmin2: float, seed: int) -> SkyCatalog:
    """Draw stars and galaxies at random in a circle, of a radius in arcseconds, around the field's center."""
    rng = np.random.default_rng([seed, 0])
    area = np.pi * (radius / 60.0) ** 2
    n_stars, n_galaxies = round(stars_per_arcmin2 * area), round(galaxies_per_arcmin2 * area)
    count = n_stars + n_galaxies
    distance = radius / 3600.0 * np.sqrt(rng.uniform(size=count))
    angle = rng.uniform(0.0, 2.0 * np.pi, count)
    dec = CENTER[1] + distance * np.sin(angle)
    mag = np.concatenate(
        [_magnitudes(rng, n_stars, 14.0, 23.0, 0.2), _magnitudes(rng, n_galaxies, 18.0, 23.5, 0.3)]
    )
    galaxy_radius = np.clip(rng.lognormal(np.log(0.5), 0.35, n_galaxies), 0.2, 2.0)
    return SkyCatalog(
        id=np.arange(1, count + 1),
        ra=CENTER[0] + distance * np.cos(angle) / np.cos(np.deg2rad(dec)),
        dec=dec,
        mag=mag,
        is_star=np.arange(count) < n_stars,
        half_light_radius=np.concatenate([np.zeros(n_stars), galaxy_radius]),
        axis_ratio=np.concatenate([np.ones(n_stars), rng.uniform(0.3, 1.0, n_galaxies)]),
        position_angle=np.concatenate([np.zeros(n_stars), rng.uniform(0.0, 180.0, n_galaxies)]),
    )


def _magnitudes(
    rng: np.random.Generator, count: int, bright: float, faint: float, slope: float
) -> np.ndarray:
    """Draw magnitudes whose number grows by a factor 10 ** slope per magnitude."""
    low, high = 10.0 ** (slope * bright), 10.0 ** (slope * faint)
    return np.log10(rng.uniform(low, high, count)) / slope
