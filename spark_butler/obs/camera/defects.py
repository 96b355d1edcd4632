"""Detection of defects, and their reading from tables and images.  Runs in the driver and in workers."""

from __future__ import annotations

__all__ = ("find_defects", "read_defects", "sections_of", "to_mask", "to_table")

from collections.abc import Sequence

import astropy.io.fits
import astropy.table
import numpy as np
import numpy.typing as npt
import scipy.ndimage
from lsst.resources import ResourcePath

from ...errors import UserError
from .geometry import Section
from .raw_fits import display_name, read_raw_pixels

type Mask = npt.NDArray[np.bool_]

_SURROUNDINGS = 15
_FORMATS = {".ecsv": "ascii.ecsv", ".csv": "ascii.csv", ".txt": "ascii.basic"}
_FORMS = (("x0", "y0", "width", "height"), ("x1", "x2", "y1", "y2"), ("x", "y"))


def find_defects(
    *,
    dark: npt.NDArray[np.float32] | None,
    flat: npt.NDArray[np.float32] | None,
    hot_sigma: float,
    dead_fraction: float,
    column_fraction: float,
) -> Mask:
    """Return a mask of pixels that are hot, dead, or in a bad column.

    Parameters
    ----------
    hot_sigma
        Sigma of the dark current above the detector's that makes a pixel hot.
    dead_fraction
        Relative deviation from the median of the surroundings that makes a pixel dead.
    column_fraction
        Fraction of defects that makes a column bad.
    """
    masks = []
    if dark is not None:
        finite = dark[np.isfinite(dark)]
        level = float(np.median(finite)) if finite.size else 0.0
        spread = 1.4826 * float(np.median(np.abs(finite - level))) if finite.size else 0.0
        masks.append(~np.isfinite(dark) | (dark > level + hot_sigma * max(spread, 1e-6)))
    if flat is not None:
        smooth = scipy.ndimage.median_filter(np.nan_to_num(flat), _SURROUNDINGS, mode="nearest")
        relative = flat / np.where(smooth > 0, smooth, np.nan)
        masks.append(~(np.abs(relative - 1.0) <= dead_fraction))
    mask = np.logical_or.reduce(masks)
    # A bad column begins and ends at its first and last defect.
    for column in np.flatnonzero(mask.mean(axis=0) >= column_fraction):
        rows = np.flatnonzero(mask[:, column])
        mask[rows[0] : rows[-1] + 1, column] = True
    return np.asarray(mask)


def sections_of(mask: Mask) -> list[Section]:
    """Return rectangles that cover exactly the set pixels: runs along columns, joined where they agree."""
    padded = np.zeros((mask.shape[0] + 2, mask.shape[1]), dtype=np.int8)
    padded[1:-1] = mask
    steps = np.diff(padded, axis=0)
    # Starts and ends of runs come in the same order: column by column.
    starts, ends = (np.argwhere(sign == steps.T) for sign in (1, -1))
    growing: dict[tuple[int, int], tuple[int, int]] = {}
    done: list[Section] = []
    for (column, first), (_, last) in zip(starts.tolist(), ends.tolist(), strict=True):
        begun, end = growing.pop((first, last), (column, column))
        if end != column:
            done.append(Section(x_start=begun, x_stop=end, y_start=first, y_stop=last))
            begun = column
        growing[first, last] = (begun, column + 1)
    done += [
        Section(x_start=begun, x_stop=end, y_start=first, y_stop=last)
        for (first, last), (begun, end) in growing.items()
    ]
    return sorted(done, key=lambda section: (section.x_start, section.y_start))


def to_table(sections: Sequence[Section]) -> astropy.table.Table:
    """Return rectangles as the table that Rubin's defects are: first pixel (from 0), width and height."""
    rows = [(s.x_start, s.y_start, s.shape[1], s.shape[0]) for s in sections]
    columns = np.array(rows, dtype=np.int32).reshape(-1, 4).T
    return astropy.table.Table(dict(zip(_FORMS[0], columns, strict=True)))


def to_mask(table: astropy.table.Table, shape: tuple[int, int]) -> Mask:
    """Return a mask of the rectangles of a table in an image; parts outside are left out."""
    mask = np.zeros(shape, dtype=bool)
    for row in table:
        x, y = max(int(row["x0"]), 0), max(int(row["y0"]), 0)
        mask[y : int(row["y0"]) + int(row["height"]), x : int(row["x0"]) + int(row["width"])] = True
    return mask


def read_defects(file: ResourcePath) -> list[Section]:
    """Read defects of an assembled detector from a table or from a FITS image, in which defects are not 0.

    A table (FITS, ECSV, CSV, or text with a line of column names) has columns ``x0``, ``y0``, ``width``,
    ``height`` (pixels from 0, as Rubin's), ``x1``, ``x2``, ``y1``, ``y2`` (from 1, inclusive), or ``x``,
    ``y`` (single pixels, from 1).
    """
    name = display_name(file)
    try:
        with file.as_local() as local:
            ending = file.getExtension().lower()
            if ending in _FORMATS:
                return _from_table(astropy.table.Table.read(local.ospath, format=_FORMATS[ending]), name)
            with astropy.io.fits.open(local.ospath) as hdus:
                number = next(
                    (n for n, hdu in enumerate(hdus) if isinstance(hdu, astropy.io.fits.BinTableHDU)), None
                )
                has_image = any(hdu.is_image and hdu.header.get("NAXIS", 0) >= 2 for hdu in hdus)
            if number is not None and not has_image:
                return _from_table(astropy.table.Table.read(local.ospath, hdu=number), name)
            with open(local.ospath, "rb") as stream:
                pixels, _ = read_raw_pixels(stream, name)
    except FileNotFoundError:
        raise UserError(f"{name}: no such file of defects") from None
    except (OSError, ValueError) as err:
        if isinstance(err, UserError):
            raise
        raise UserError(f"{name}: not a readable table or image of defects: {err}") from None
    return sections_of(~(pixels == 0))


def _from_table(table: astropy.table.Table, name: str) -> list[Section]:
    columns = {str(column).lower(): column for column in table.colnames}
    form = next((form for form in _FORMS if set(form) <= set(columns)), None)
    if form is None:
        forms = "; ".join(", ".join(each) for each in _FORMS)
        raise UserError(f"{name}: columns {', '.join(table.colnames)}; defects have one of: {forms}")
    sections = []
    for number, row in enumerate(table, start=1):
        try:
            a, b, *rest = (int(row[columns[key]]) for key in form)
            if form == _FORMS[0]:
                bounds = (a, a + rest[0], b, b + rest[1])
            else:
                bounds = (a - 1, b, rest[0] - 1, rest[1]) if rest else (a - 1, a, b - 1, b)
            x_start, x_stop, y_start, y_stop = bounds
            sections.append(Section(x_start=x_start, x_stop=x_stop, y_start=y_start, y_stop=y_stop))
        except ValueError:
            values = ", ".join(f"{key} = {row[columns[key]]}" for key in form)
            raise UserError(f"{name}: row {number} is no rectangle of pixels: {values}") from None
    return sections
