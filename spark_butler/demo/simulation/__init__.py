"""Simulation of raw frames of a camera, with tables of the true sources."""

from __future__ import annotations

__all__ = ("SCENES", "Scene", "SimulatedData", "make_simcam", "read_table", "simulate")

from ._camera import make_simcam
from ._scenes import SCENES, Scene
from ._simulate import SimulatedData, read_table, simulate
