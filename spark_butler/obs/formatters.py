"""Reading raw FITS files as the butler's ``raw`` datasets."""

from __future__ import annotations

__all__ = ("RawFitsFormatter", "UncheckedRawFitsFormatter")

from typing import Any, BinaryIO, ClassVar

import astropy.units as u
from lsst.daf.butler import FormatterV2
from lsst.images import Image
from lsst.resources import ResourceHandleProtocol

from .camera.raw_fits import display_name, read_raw_pixels


class RawFitsFormatter(FormatterV2):
    """Reads an untouched raw FITS file as a `lsst.images.Image` in ADU.

    Notes
    -----
    The pixels are those of the first two-dimensional image in the file, overscan included; the header's cards
    are in the image's metadata.  Files compressed with ``fpack`` or ``gzip`` are understood.  A file that is
    truncated or corrupt raises `~spark_butler.obs.RawFileError`.
    """

    check_sums: ClassVar[bool] = True
    """Whether pixels that disagree with their ``DATASUM`` are an error."""
    can_read_from_stream: ClassVar[bool] = True
    can_read_from_local_file: ClassVar[bool] = True
    supported_extensions: ClassVar[frozenset[str]] = frozenset(
        {".fits", ".fit", ".fts", ".fits.fz", ".fits.gz", ".fit.gz", ".fts.gz"}
    )
    default_extension: ClassVar[str | None] = ".fits"

    def read_from_stream(
        self,
        stream: BinaryIO | ResourceHandleProtocol[Any],
        component: str | None = None,
        expected_size: int = -1,
    ) -> Any:
        # Docstring inherited.
        # The original's name, not the cache's, is what the user can look for.
        name = display_name(self.file_descriptor.location.uri)
        pixels, header = read_raw_pixels(stream, name, check_sums=self.check_sums)
        image = Image(pixels, unit=u.adu, metadata=header)
        if component is not None:
            return getattr(image, component)
        parameters = self.file_descriptor.parameters or {}
        return image[parameters["bbox"]] if "bbox" in parameters else image

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Any:
        # Docstring inherited.
        with open(path, "rb") as stream:
            return self.read_from_stream(stream, component, expected_size)


class UncheckedRawFitsFormatter(RawFitsFormatter):
    """Reads raw FITS files whose checksums are known to be wrong."""

    check_sums: ClassVar[bool] = False
