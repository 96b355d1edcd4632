"""Raw data of a simulated camera, with known truth."""

from __future__ import annotations

__all__ = ("SimulatedData", "make_simcam", "read_table", "simulate")

from ._camera import make_simcam
from ._simulate import SimulatedData, read_table, simulate
