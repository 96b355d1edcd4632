"""Simulated detectors: response, dark current, cosmic rays, bias and read noise."""

from __future__ import annotations

__all__ = ("Electronics", "draw_cosmic_rays", "read_out", "spoil_electronics")

import dataclasses
from typing import Self

import numpy as np

from ...obs.camera.description import CameraDescription, DetectorDescription
from ._scenes import Scene

_BIAS_LEVEL = 1000.0
_DARK_RATE = 0.05
_HOT_COLUMN = 2.0e4
_VIGNETTING = 0.12


@dataclasses.dataclass(frozen=True)
class Electronics:
    """Constant properties of a detector; arrays have the shape of the assembled image."""

    throughput: np.ndarray
    """Relative response to light: vignetting, amplifier and pixel response; 0 in dead columns."""
    dark_rate: np.ndarray
    """Dark current, in electrons per second."""
    bias_structure: np.ndarray
    """Bias relative to the level of the overscan, in ADU."""
    hot: np.ndarray
    """Electrons that hot columns add to every exposure."""
    bias_levels: tuple[float, ...]
    """Bias level of each amplifier, in ADU."""

    @classmethod
    def make(cls, camera: CameraDescription, detector: DetectorDescription, seed: int) -> Self:
        """Draw the properties of a detector; its first defect is a dead column, the others are hot."""
        rng = np.random.default_rng([seed, 2, detector.id])
        shape = (detector.ny, detector.nx)
        throughput = _vignetting(camera, detector) * rng.normal(1.0, 0.01, shape)
        structure = rng.normal(0.0, 0.5, shape)
        rows = np.arange(detector.ny) / detector.ny
        columns = np.arange(detector.nx) / detector.nx
        structure += (6.0 * np.exp(-8.0 * rows))[:, None] + (2.0 * np.sin(12.0 * np.pi * columns))[None, :]
        dark = np.full(shape, _DARK_RATE)
        hot_pixels = rng.integers(0, dark.size, dark.size // 2000)
        dark.ravel()[hot_pixels] += rng.exponential(5.0, len(hot_pixels))
        levels = []
        for amplifier in detector.amplifiers:
            throughput[amplifier.section.slices] *= rng.uniform(0.98, 1.02)
            levels.append(_BIAS_LEVEL + float(rng.uniform(-30.0, 30.0)))
        hot = np.zeros(shape)
        for index, defect in enumerate(detector.defects):
            if index == 0:
                throughput[defect.slices] = 0.0
            else:
                hot[defect.slices] = _HOT_COLUMN
        return cls(throughput, dark, structure, hot, tuple(levels))


def _vignetting(camera: CameraDescription, detector: DetectorDescription) -> np.ndarray:
    x, y = focal_plane_position(camera, detector)
    return np.asarray(1.0 - _VIGNETTING * (x**2 + y**2))


def focal_plane_position(
    camera: CameraDescription, detector: DetectorDescription
) -> tuple[np.ndarray, np.ndarray]:
    """Return focal-plane x and y of a detector's pixels, in units of the focal plane's radius."""
    angle = np.deg2rad(detector.rotation)
    dx = (np.arange(detector.nx) - 0.5 * (detector.nx - 1))[None, :]
    dy = (np.arange(detector.ny) - 0.5 * (detector.ny - 1))[:, None]
    x = detector.offset[0] + np.cos(angle) * dx - np.sin(angle) * dy
    y = detector.offset[1] + np.sin(angle) * dx + np.cos(angle) * dy
    radius = focal_plane_radius(camera)
    return x / radius, y / radius


def focal_plane_radius(camera: CameraDescription) -> float:
    """Return the distance of the farthest corner from the boresight, in pixels."""
    return max(float(np.hypot(*d.offset) + 0.5 * np.hypot(d.nx, d.ny)) for d in camera.detectors)


def spoil_electronics(electronics: Electronics, scene: Scene, rng: np.random.Generator) -> Electronics:
    """Return the properties of a detector with the faults of a scene."""
    throughput, hot, structure = (
        value.copy() for value in (electronics.throughput, electronics.hot, electronics.bias_structure)
    )
    ny, nx = throughput.shape
    if scene.flat_range is not None:
        low, high = scene.flat_range
        radius = np.hypot(np.arange(nx)[None, :] - 0.5 * nx, np.arange(ny)[:, None] - 0.5 * ny)
        # Half of the pixels are within 0.4 of the half diagonal.
        fall = np.clip((radius / np.hypot(0.5 * nx, 0.5 * ny)) ** 2, 0.0, 1.0)
        throughput *= high - (high - low) * fall
    if scene.dead_fraction:
        throughput[rng.uniform(size=throughput.shape) < scene.dead_fraction] = 0.0
    for column in rng.integers(0, nx, scene.hot_columns):
        hot[ny // 5 :, column] += 80.0
    if scene.glow:
        hot += scene.glow * np.exp(-np.hypot(*np.mgrid[:ny, :nx]) / (0.08 * nx))
    return dataclasses.replace(electronics, throughput=throughput, hot=hot, bias_structure=structure)


def draw_cosmic_rays(shape: tuple[int, int], seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Return the electrons of cosmic rays: straight tracks, about 30 in a megapixel and 30 seconds."""
    electrons = np.zeros(shape)
    for _ in range(rng.poisson(1e-6 * shape[0] * shape[1] * seconds)):
        length, angle = min(rng.exponential(8.0) + 1.0, 60.0), rng.uniform(0.0, np.pi)
        along = np.arange(0.0, length, 0.25)
        x = (rng.uniform(0, shape[1]) + along * np.cos(angle)).astype(int)
        y = (rng.uniform(0, shape[0]) + along * np.sin(angle)).astype(int)
        inside = (x >= 0) & (x < shape[1]) & (y >= 0) & (y < shape[0])
        np.add.at(electrons, (y[inside], x[inside]), rng.uniform(200.0, 1000.0))
    return electrons


def read_out(
    electrons: np.ndarray,
    detector: DetectorDescription,
    electronics: Electronics,
    rng: np.random.Generator,
    scene: Scene,
) -> np.ndarray:
    """Return the raw frame, in ADU with overscan, of an assembled image of collected electrons."""
    raw = np.zeros((detector.raw_ny, detector.raw_nx), dtype=np.uint16)
    if scene.nonlinearity:
        electrons = electrons * (1.0 - scene.nonlinearity * np.clip(electrons / 5e4, 0.0, 2.0))
    drift = np.linspace(0.0, scene.overscan_ramp, detector.ny)[:, None]
    for amplifier, level in zip(detector.amplifiers, electronics.bias_levels, strict=True):
        level += rng.normal(0.0, 2.0)
        noise = amplifier.read_noise / amplifier.gain
        signal = electrons[amplifier.section.slices] / amplifier.gain
        signal = signal + electronics.bias_structure[amplifier.section.slices] + level
        signal = signal + drift[amplifier.section.slices[0]]
        top = amplifier.saturation if scene.full_well is None else scene.full_well
        signal += noise * rng.standard_normal(signal.shape, dtype=np.float32)
        raw[amplifier.raw_data_section.slices] = np.clip(np.rint(signal), 0, top)
        if (overscan := amplifier.raw_overscan_section) is not None:
            blank = (
                level
                + drift[amplifier.section.slices[0]]
                + noise * rng.standard_normal(overscan.shape, dtype=np.float32)
            )
            raw[overscan.slices] = np.clip(np.rint(blank), 0, amplifier.saturation)
    return raw
