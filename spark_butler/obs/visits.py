"""Define visits: one for each science exposure, with the regions of sky that its detectors see."""

from __future__ import annotations

__all__ = ("define_visits",)

import logging

import numpy as np
from lsst.daf.butler import Butler, ButlerUserError, DimensionRecord, EmptyQueryResultError, InvalidQueryError
from lsst.daf.butler.registry import UserExpressionError
from lsst.sphgeom import ConvexPolygon, LonLat, UnitVector3d

from ..errors import UserError
from ..repository.unknown_names import explain_query
from .camera.description import CameraDescription
from .instrument import ONE_TO_ONE
from .repository import get_description

logger = logging.getLogger(__name__)

_BATCH = 500


def _corners(
    camera: CameraDescription, detector: int, ra: float, dec: float, rotation: float, padding: int
) -> list[UnitVector3d]:
    described = camera.get_detector(detector)
    low, right, top = -0.5 - padding, described.nx - 0.5 + padding, described.ny - 0.5 + padding
    x, y = np.array([low, right, right, low]), np.array([low, low, top, top])
    lon, lat = camera.initial_wcs(detector, ra, dec, rotation).all_pix2world(x, y, 0)
    return [UnitVector3d(LonLat.fromDegrees(a, b)) for a, b in zip(lon, lat, strict=True)]


def define_visits(butler: Butler, instrument: str, *, where: str = "", padding: int = 50) -> list[int]:
    """Define a visit for each science exposure that has none yet; return their identifiers.

    A visit has the identifier of its exposure.

    Parameters
    ----------
    where
        Expression that narrows the exposures, in the butler's query language.
    padding
        Pixels by which the regions reach beyond the detectors, to allow for errors of the pointing.
    """
    camera = get_description(butler, instrument)
    exposures = _select(butler, instrument, where)
    defined = {
        record.exposure
        for record in butler.query_dimension_records(
            "visit_definition", instrument=instrument, explain=False, limit=None
        )
    }
    new = [exposure for exposure in exposures if exposure.id not in defined]
    for exposure in new:
        if exposure.tracking_ra is None or exposure.tracking_dec is None:
            raise UserError(
                f"exposure {exposure.id} of {instrument} has no pointing; its visit has no region"
            )
    butler.registry.syncDimensionData(
        "visit_system", {"instrument": instrument, "id": ONE_TO_ONE, "name": "one-to-one"}
    )
    for start in range(0, len(new), _BATCH):
        _insert(butler, camera, new[start : start + _BATCH], padding)
    logger.info("Defined %d visits; %d exposures had theirs.", len(new), len(exposures) - len(new))
    return [int(exposure.id) for exposure in new]


def _select(butler: Butler, instrument: str, where: str) -> list[DimensionRecord]:
    science = "exposure.observation_type = 'science'"
    try:
        return butler.query_dimension_records(
            "exposure",
            instrument=instrument,
            where=f"{science} AND ({where})" if where else science,
            order_by="exposure",
            limit=None,
        )
    except EmptyQueryResultError as err:
        selected = f" with {where!r}" if where else ""
        reason = "".join(f"; {reason}" for reason in err.reasons)
        raise UserError(f"the repository has no science exposure of {instrument}{selected}{reason}") from None
    except InvalidQueryError as err:
        raise explain_query(butler, where, err) from None
    except (UserExpressionError, ButlerUserError) as err:
        raise UserError(f"where = {where!r}: {' '.join(str(err).split())}") from None


def _insert(
    butler: Butler, camera: CameraDescription, exposures: list[DimensionRecord], padding: int
) -> None:
    visits, definitions, memberships, regions = [], [], [], []
    for exposure in exposures:
        key = {"instrument": camera.name, "visit": exposure.id}
        corners: list[UnitVector3d] = []
        pointing = (exposure.tracking_ra, exposure.tracking_dec, exposure.sky_angle or 0.0)
        for detector in camera.detectors:
            vertices = _corners(camera, detector.id, *pointing, padding)
            corners.extend(vertices)
            regions.append({**key, "detector": detector.id, "region": ConvexPolygon(vertices)})
        visits.append(_visit(exposure, ConvexPolygon(corners)))
        definitions.append({**key, "exposure": exposure.id})
        memberships.append({**key, "visit_system": ONE_TO_ONE})
    with butler.registry.transaction():
        butler.registry.insertDimensionData("visit", *visits)
        butler.registry.insertDimensionData("visit_definition", *definitions)
        butler.registry.insertDimensionData("visit_system_membership", *memberships)
        butler.registry.insertDimensionData("visit_detector_region", *regions)


def _visit(exposure: DimensionRecord, region: ConvexPolygon) -> dict[str, object]:
    same = (
        *("instrument", "id", "day_obs", "physical_filter", "seq_num", "exposure_time", "target_name"),
        *("observation_reason", "science_program", "azimuth", "zenith_angle", "timespan"),
    )
    return {**{key: getattr(exposure, key) for key in same}, "name": exposure.obs_id, "region": region}
