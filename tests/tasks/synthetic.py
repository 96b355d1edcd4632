"""Images of stars, galaxies and cosmic rays with known truth, in electrons."""

from __future__ import annotations

__all__ = ("SyntheticImage", "make_image")

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.special


@dataclasses.dataclass
class SyntheticImage:
    """An image with its truth."""

    image: npt.NDArray[np.float32]
    variance: npt.NDArray[np.float32]
    sky: float
    sigma: float
    read_noise: float
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    flux: npt.NDArray[np.float64]
    galaxy: npt.NDArray[np.bool_]
    cosmic_rays: npt.NDArray[np.bool_]

    def significance(self) -> npt.NDArray[np.float64]:
        """Signal-to-noise ratio of each source if it were a point source, sky noise only."""
        noise = np.sqrt(self.sky + self.read_noise**2) * np.sqrt(4.0 * np.pi) * self.sigma
        return np.asarray(self.flux / noise)


def make_image(
    *,
    size: int = 300,
    stars: int = 60,
    galaxies: int = 0,
    rays: int = 0,
    sky: float = 400.0,
    sigma: float = 1.8,
    read_noise: float = 6.0,
    significance: tuple[float, float] = (10.0, 1000.0),
    gradient: float = 0.0,
    seed: int = 1,
) -> SyntheticImage:
    """Simulate sources that keep a distance of eight sigma from one another and from the edges."""
    rng = np.random.default_rng(seed)
    count = stars + galaxies
    x, y = _spread(rng, count, size, 8.0 * sigma)
    count = len(x)
    galaxy = np.arange(count) >= stars
    noise = np.sqrt(sky + read_noise**2) * np.sqrt(4.0 * np.pi) * sigma
    flux = noise * np.exp(rng.uniform(np.log(significance[0]), np.log(significance[1]), count))
    model = np.full((size, size), sky)
    model += gradient * sky * (np.arange(size)[None, :] / size - 0.5)
    width = np.where(galaxy, sigma * rng.uniform(1.4, 2.5, count), sigma)
    for args in zip(x, y, flux, width, strict=True):
        _add_gaussian(model, *args)
    image = rng.poisson(model).astype(np.float64)
    hit = np.zeros(image.shape, dtype=bool)
    for _ in range(rays):
        _add_ray(rng, image, hit)
    image += rng.normal(0.0, read_noise, image.shape)
    return SyntheticImage(
        image=image.astype(np.float32),
        variance=(np.maximum(image, 0.0) + read_noise**2).astype(np.float32),
        sky=sky,
        sigma=sigma,
        read_noise=read_noise,
        x=x,
        y=y,
        flux=flux,
        galaxy=galaxy,
        cosmic_rays=hit,
    )


def _spread(
    rng: np.random.Generator, count: int, size: int, distance: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    points: list[Any] = []
    for point in rng.uniform(distance, size - 1 - distance, (50 * count, 2)):
        if len(points) == count:
            break
        if all(np.hypot(*(point - other)) > distance for other in points):
            points.append(point)
    array = np.array(points).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _add_gaussian(model: npt.NDArray[np.float64], x: float, y: float, flux: float, sigma: float) -> None:
    """Add a Gaussian integrated over the pixels."""

    def profile(center: float, size: int) -> npt.NDArray[np.float64]:
        edges = (np.arange(size + 1) - 0.5 - center) / (sigma * np.sqrt(2.0))
        return np.asarray(0.5 * np.diff(scipy.special.erf(edges)))

    model += flux * np.multiply.outer(profile(y, model.shape[0]), profile(x, model.shape[1]))


def _add_ray(rng: np.random.Generator, image: npt.NDArray[np.float64], hit: npt.NDArray[np.bool_]) -> None:
    """Add a straight track one pixel wide."""
    length = rng.integers(1, 15)
    angle = rng.uniform(0.0, np.pi)
    start = rng.uniform(5, np.array(image.shape) - 5)
    along = np.arange(length)
    y = np.rint(start[0] + along * np.sin(angle)).astype(int)
    x = np.rint(start[1] + along * np.cos(angle)).astype(int)
    inside = (x >= 0) & (y >= 0) & (x < image.shape[1]) & (y < image.shape[0])
    image[y[inside], x[inside]] += rng.uniform(500.0, 5000.0)
    hit[y[inside], x[inside]] = True
