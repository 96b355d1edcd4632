"""Raw data of a simulated camera, with known truth."""

from __future__ import annotations

__all__ = ("make_simcam",)

from ._camera import make_simcam
