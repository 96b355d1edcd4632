"""Description of the simulated camera, with any number and size of detectors."""

from __future__ import annotations

__all__ = ("BAND", "PHYSICAL_FILTER", "make_simcam")

from typing import Any

from ...obs.camera.description import CameraDescription

PHYSICAL_FILTER = "sim_r"
BAND = "r"
_OVERSCAN = 32
_GAP = 24


def make_simcam(*, size: int = 1024, detectors: int = 4) -> CameraDescription:
    """Build the description of the simulated camera; the defaults give ``conf/cameras/simcam.yaml``.

    Parameters
    ----------
    size
        Columns and rows of an assembled detector; even.
    detectors
        Number of detectors, in rows of two; those of odd rows are mounted upside down.
    """
    if size % 2 or size < 64 or detectors < 1:
        raise ValueError(f"size must be even and at least 64, detectors at least 1; got {size}, {detectors}")
    return CameraDescription.from_dict(
        {
            "name": "SimCam",
            "description": "A simulated camera: detectors in rows of two, two amplifiers with overscan each",
            "match": {"INSTRUME": "^SimCam$"},
            "filters": [{"name": PHYSICAL_FILTER, "band": BAND, "header_values": ["r"]}],
            "image_types": {"science": ["OBJECT"], "bias": ["BIAS"], "dark": ["DARK"], "flat": ["FLAT"]},
            "header": {
                "exposure_id": "EXPID",
                "detector": "DETID",
                "image_type": "IMGTYPE",
                "date_begin": "DATE-OBS",
                "exposure_time": "EXPTIME",
                "physical_filter": "FILTER",
                "ra": "RA",
                "dec": "DEC",
                "rotation": {"keyword": "ROTPA", "default": 0.0},
                "obs_id": "OBSID",
                "seq_num": "SEQNUM",
                "target": "OBJECT",
                "program": "PROGRAM",
            },
            "detectors": [_detector(index, size, detectors) for index in range(detectors)],
        },
        origin="simulated camera",
    )


def _detector(index: int, size: int, detectors: int) -> dict[str, Any]:
    row, column = divmod(index, 2)
    rows, columns = (detectors + 1) // 2, min(detectors, 2)
    pitch = size + _GAP
    half, overscan = size // 2, _OVERSCAN
    amplifiers = [
        {
            "name": name,
            "raw_data_section": f"[{data + 1}:{data + half}, 1:{size}]",
            "raw_overscan_section": f"[{scan + 1}:{scan + overscan}, 1:{size}]",
            "section": f"[{place + 1}:{place + half}, 1:{size}]",
            "gain": round(1.5 + 0.2 * number + 0.05 * index, 3),
            "read_noise": round(5.0 + 1.5 * number + 0.5 * index, 3),
            "saturation": 60000.0,
        }
        for number, (name, data, scan, place) in enumerate(
            [("A", 0, half, 0), ("B", half + 2 * overscan, half + overscan, half)]
        )
    ]
    first = size * (30 + 7 * index) // 100
    second = size * (85 - 5 * index) // 100
    return {
        "id": index,
        "name": f"S{row}{column}",
        "raw_nx": size + 2 * overscan,
        "raw_ny": size,
        "nx": size,
        "ny": size,
        "pixel_scale": 0.2,
        "offset": [pitch * (column - 0.5 * (columns - 1)), pitch * (row - 0.5 * (rows - 1))],
        "rotation": 180.0 * (row % 2),
        "amplifiers": amplifiers,
        "defects": [f"[{first}:{first}, 1:{size}]", f"[{second}:{second + 1}, {size // 3}:{size}]"],
    }
