"""What an exposure's dimension record says, in the form that `lsst.images` wants."""

from __future__ import annotations

__all__ = ("describe_observation",)

import warnings
from typing import Any

import astropy.units as u
from astro_metadata_translator import ObservationInfo, makeObservationInfo
from astropy.coordinates import SkyCoord

from ..obs.description import CameraDescription


def describe_observation(
    camera: CameraDescription, detector: int, exposure: Any, visit: int | None = None
) -> ObservationInfo:
    """Make the observation info of one detector's image.

    Parameters
    ----------
    camera
        The camera.
    detector
        Identifier of the detector.
    exposure
        Dimension record of the exposure.
    visit
        Identifier of the visit; the exposure's by default.
    """
    values: dict[str, Any] = {
        "instrument": camera.name,
        "exposure_id": exposure.id,
        "visit_id": exposure.id if visit is None else visit,
        "observation_id": exposure.obs_id,
        "physical_filter": exposure.physical_filter,
        "detector_num": detector,
        "detector_name": camera.get_detector(detector).name,
        "observation_type": exposure.observation_type,
        "observation_reason": exposure.observation_reason,
        "object": exposure.target_name,
        "science_program": exposure.science_program,
        "observing_day": exposure.day_obs,
        "observation_counter": exposure.seq_num,
        "has_simulated_content": exposure.has_simulated,
        "can_see_sky": exposure.can_see_sky,
    }
    if exposure.exposure_time is not None:
        values["exposure_time"] = exposure.exposure_time * u.s
    if exposure.dark_time is not None:
        values["dark_time"] = exposure.dark_time * u.s
    if exposure.timespan is not None:
        values["datetime_begin"], values["datetime_end"] = exposure.timespan.begin, exposure.timespan.end
    if exposure.tracking_ra is not None and exposure.tracking_dec is not None:
        values["tracking_radec"] = SkyCoord(
            exposure.tracking_ra * u.deg, exposure.tracking_dec * u.deg, frame="icrs"
        )
    with warnings.catch_warnings():
        # Leap-second tables past their date matter to nothing here.
        warnings.simplefilter("ignore")
        return makeObservationInfo(**{key: value for key, value in values.items() if value is not None})
