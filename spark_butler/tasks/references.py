"""Reference catalogs: read them at the time of the image, and find isolated references.

Runs in workers.
"""

from __future__ import annotations

__all__ = ("ReferenceColumnError", "isolated_references", "load_references")

from collections.abc import Sequence
from typing import Any

import astropy.table
import astropy.time
import astropy.units as u
import astropy.wcs
import numpy as np
from astropy.coordinates import SkyCoord
from lsst.daf.butler import DeferredDatasetHandle
from lsst.pipe.base import InMemoryDatasetHandle

from ..errors import UserError
from .astrometry import pixel_scale
from .pixels import BoolArray, FloatArray, IntArray


def isolated_references(
    wcs: astropy.wcs.WCS, references: astropy.table.Table, chosen: IntArray, radius: float
) -> BoolArray:
    """Return which references have no neighbors that add more than a hundredth of their light.

    Parameters
    ----------
    references, chosen
        The catalog, as from `load_references`, and the rows to check.
    radius
        Largest distance of neighbors in pixels.
    """
    sky = SkyCoord(references["ra"], references["dec"], unit=u.deg)
    near, each = sky.search_around_sky(sky[chosen], radius * pixel_scale(wcs) * u.arcsec)[:2]
    flux = np.nan_to_num(np.asarray(references["flux"]))
    light = np.bincount(near, weights=flux[each], minlength=len(chosen))
    return np.asarray(light < 1.01 * flux[chosen])


class ReferenceColumnError(UserError, KeyError):
    """A reference catalog lacks a column."""

    def __str__(self) -> str:
        return str(self.args[0])


def load_references(
    handles: Sequence[DeferredDatasetHandle | InMemoryDatasetHandle],
    flux: str,
    time: astropy.time.Time | None,
) -> astropy.table.Table | None:
    """Return ``id``, ``ra`` and ``dec`` [deg] and ``flux`` [nJy] of all shards together, or `None`.

    Parameters
    ----------
    flux
        Column of the fluxes.
    time
        Time of the image, to which proper motions move the positions.

    Raises
    ------
    ReferenceColumnError
        Raised if a shard lacks a column.
    """
    shards = []
    for handle in handles:
        shard = handle.get()
        if missing := [name for name in ("id", "coord_ra", "coord_dec", flux) if name not in shard.colnames]:
            raise ReferenceColumnError(
                f"The reference catalog {getattr(handle, 'ref', handle)} has no column "
                f"{', '.join(missing)}; it has {', '.join(shard.colnames)}."
            )
        ra, dec = _at_time(shard, time)
        shards.append({"id": np.asarray(shard["id"]), "ra": ra, "dec": dec, "flux": _values(shard, flux)})
    if not shards:
        return None
    return astropy.table.Table({name: np.concatenate([s[name] for s in shards]) for name in shards[0]})


def _values(
    shard: astropy.table.Table, name: str, unit: u.UnitBase | None = None, default: Any = None
) -> FloatArray:
    """Return a column as numbers in ``unit``, if given; ``default`` is the unit of a column without one."""
    column = shard[name]
    factor = 1.0 if unit is None else (getattr(column, "unit", None) or default).to(unit)
    return np.asarray(factor * np.ma.filled(np.ma.asarray(column, dtype=np.float64), np.nan))


def _at_time(shard: astropy.table.Table, time: astropy.time.Time | None) -> tuple[FloatArray, FloatArray]:
    """Return positions in degrees, moved from the catalog's epoch if it has an epoch and proper motions.

    As in all Rubin reference catalogs, angles without a unit are in radians, motions in radians a year with
    the cosine of the declination in the first one, and epochs modified Julian days.
    """
    ra, dec = (_values(shard, name, u.deg, u.rad) for name in ("coord_ra", "coord_dec"))
    if time is None or not {"epoch", "pm_ra", "pm_dec"} <= set(shard.colnames):
        return ra, dec
    years = (time.tai.mjd - _values(shard, "epoch")) / 365.25
    along_ra, along_dec = (
        np.nan_to_num(_values(shard, name, u.deg / u.yr, u.rad / u.yr) * years)
        for name in ("pm_ra", "pm_dec")
    )
    return ra + along_ra / np.cos(np.radians(dec)), dec + along_dec
