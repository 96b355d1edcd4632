"""Raw FITS files: their headers, and their pixels checked for completeness."""

from __future__ import annotations

__all__ = (
    "COMPANIONS",
    "JOINED",
    "PLANES",
    "CompanionPlanes",
    "RawFileError",
    "RawHeader",
    "display_name",
    "read_raw_header",
    "read_raw_pixels",
)

import bz2
import contextlib
import gzip
import io
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO

import astropy.io.fits
import numpy as np
from astropy.utils.exceptions import AstropyUserWarning
from lsst.resources import ResourceHandleProtocol, ResourcePath, ResourcePathExpression

from ...errors import UserError

type HeaderValue = bool | int | float | str | None
type Stream = IO[bytes] | BinaryIO | ResourceHandleProtocol[Any]

_SKIPPED = frozenset({"", "COMMENT", "HISTORY"})
COMPANIONS = frozenset(
    {"DQ", "MASK", "BPM", "FLAGS", "WHT", "WEIGHT", "IVAR", "ERR", "UNCERT", "SIGMA", "VAR", "VARIANCE"}
)
"""Names of extensions that are not raw pixels but belong to them."""
_PACKED: dict[bytes, tuple[str, Callable[[bytes], bytes]]] = {
    b"\x1f\x8b": ("gzip", gzip.decompress),
    b"BZ": ("bzip2", bz2.decompress),
}
JOINED = "NJOINED"
"""Card, not in the file, with the number of images that were joined."""
PLANES = "PLANES"
"""Card, not in the file, with the names of its `COMPANIONS`."""


class RawFileError(UserError, OSError):
    """A file is no FITS file, is truncated or is corrupt."""


class RawHeader(dict[str, HeaderValue]):
    """Cards of a raw file."""

    comments: dict[str, str]
    """Their comments, where they have one."""

    def __init__(self) -> None:
        super().__init__()
        self.comments = {}

    def overlaid(self, other: RawHeader) -> RawHeader:
        """Return these cards with those of another header over them."""
        joined = RawHeader()
        for each in (self, other):
            joined.update(each)
            joined.comments = {k: v for k, v in joined.comments.items() if k not in each} | each.comments
        return joined


def _as_plain(header: astropy.io.fits.Header, name: str) -> RawHeader:
    values = RawHeader()
    for keyword in header:
        if keyword in _SKIPPED:
            continue
        try:
            value = header[keyword]
        except astropy.io.fits.VerifyError as err:
            raise RawFileError(
                f"{name}: unreadable header card {keyword}: {' '.join(str(err).split())}"
            ) from None
        values[keyword] = value if isinstance(value, bool | int | float | str) else None
        if comment := header.comments[keyword]:
            values.comments[keyword] = comment
    return values


def _find_images(hdus: astropy.io.fits.HDUList, name: str) -> tuple[dict[int, Any], RawHeader]:
    """Return the HDUs with raw pixels, and the first one's cards over those of the primary header.

    Several of one size are amplifiers in extensions of their own: one image, joined from left to right.
    """
    primary = _as_plain(hdus[0].header, name)
    found: dict[int, Any] = {}
    companions: list[str] = []
    for index, hdu in enumerate(hdus):
        if hdu.is_image and _plane_shape(hdu.header) is not None:
            if (companion := _extension_name(hdu.header)) in COMPANIONS:
                companions.append(companion)
            else:
                found[index] = hdu
    if not found:
        raise RawFileError(f"{name}: no HDU holds a two-dimensional image")
    index, hdu = next(iter(found.items()))
    shape = _plane_shape(hdu.header)
    assert shape is not None, "It was among those with one."
    # An image of another size is a guide camera's or a preview, one of other numbers a mask.
    bits = hdu.header["BITPIX"]
    found = {
        k: image
        for k, image in found.items()
        if _plane_shape(image.header) == shape and image.header["BITPIX"] == bits
    }
    cards = primary if index == 0 else primary.overlaid(_as_plain(hdu.header, name))
    if len(found) > 1:
        for number, image in enumerate(found.values(), start=1):
            own = _as_plain(image.header, name)
            cards.update({f"{keyword}@{number}": value for keyword, value in own.items()})
        cards.update(NAXIS=2, NAXIS1=len(found) * shape[1], NAXIS2=shape[0], **{JOINED: len(found)})
    if companions:
        cards[PLANES] = " ".join(dict.fromkeys(companions))
    return found, cards


def _plane_shape(header: astropy.io.fits.Header) -> tuple[int, int] | None:
    """Return rows and columns of an image, or of a cube of one plane."""
    axes = [header.get(f"NAXIS{number + 1}", 0) for number in range(header.get("NAXIS", 0))]
    if len(axes) < 2 or any(axis != 1 for axis in axes[2:]) or min(axes) < 1:
        return None
    return axes[1], axes[0]


def _extension_name(header: astropy.io.fits.Header) -> str:
    return str(header.get("EXTNAME", "")).strip().upper()


@contextlib.contextmanager
def _opened(stream: Stream, name: str, **options: Any) -> Iterator[astropy.io.fits.HDUList]:
    with warnings.catch_warnings():
        # Truncation and checksums are tested for, more strictly, where the pixels are read.
        warnings.simplefilter("ignore", AstropyUserWarning)
        try:
            with astropy.io.fits.open(stream, memmap=False, lazy_load_hdus=True, **options) as hdus:
                yield hdus
        except (OSError, TypeError, ValueError, EOFError, astropy.io.fits.VerifyError) as err:
            if isinstance(err, RawFileError):
                raise
            # What follows the first sentence is advice for callers of astropy.
            reason = " ".join(str(err).split()).split(". ")[0]
            raise RawFileError(f"{name}: not a readable FITS image: {reason}") from None


def _plain_stream(stream: Stream, name: str) -> Stream:
    """Return the stream itself, or what it holds where it is packed as a whole."""
    magic = stream.read(2)
    stream.seek(0)
    if magic not in _PACKED:
        return stream
    kind, unpack = _PACKED[magic]
    try:
        return io.BytesIO(unpack(stream.read()))
    except (OSError, EOFError, ValueError, zlib.error) as err:
        raise RawFileError(f"{name}: truncated or corrupt {kind} file: {err}") from None


def display_name(uri: ResourcePath) -> str:
    """Return what messages call a file: its path where it is local, else its URI."""
    return uri.ospath if uri.isLocal else str(uri)


def read_raw_header(uri: ResourcePathExpression) -> RawHeader:
    """Read the header cards that describe a raw image, without its pixels.

    They are those of the primary header, and over them those of the image's own; of repeated keywords one
    value, undefined values as `None`, no commentary.
    """
    path = ResourcePath(uri, forceDirectory=False)
    name = display_name(path)
    try:
        with path.open("rb") as stream, _opened(_plain_stream(stream, name), name) as hdus:
            return _find_images(hdus, name)[1]
    except FileNotFoundError:
        raise RawFileError(f"{name}: no such file") from None


def read_raw_pixels(
    stream: Stream, name: str, *, check_sums: bool = True
) -> tuple[np.ndarray, dict[str, HeaderValue]]:
    """Read the pixels of a raw image, and its header as from `read_raw_header`.

    The pixels are in native byte order; integers with ``BZERO`` are the unsigned ones meant.  A card `PLANES`
    of the header is one of `CompanionPlanes`.

    Parameters
    ----------
    stream
        Seekable binary stream at the start of the file.
    check_sums
        Whether pixels that disagree with their ``DATASUM`` are an error.
    """
    # One read of the whole file: every byte is needed, and a remote stream is slow to seek in.
    content = bytes(_plain_stream(stream, name).read())
    with _opened(io.BytesIO(content), name) as hdus:
        images, header = _find_images(hdus, name)
        _check_stored(content, list(images), name, check_sums=check_sums)
        pixels = _join(list(images.values()))
    if PLANES in header:
        names = str(header[PLANES])
        header[PLANES] = CompanionPlanes.of_file(names, content, name, check_sums=check_sums)
    return pixels, header


class CompanionPlanes(str):
    """The card `PLANES` of a file whose pixels were read: the planes' names, and access to them.

    `read` reads a plane when it is needed: most cameras have no use for them.
    """

    _file: tuple[bytes, str, bool]

    @classmethod
    def of_file(cls, names: str, content: bytes, name: str, *, check_sums: bool) -> CompanionPlanes:
        """Return the card of a file."""
        card = cls(names)
        card._file = (content, name, check_sums)
        return card

    def read(self, extension: str) -> np.ndarray:
        """Read one of the `COMPANIONS`; several extensions of its name are joined from left to right."""
        content, name, check_sums = self._file
        with _opened(io.BytesIO(content), name) as hdus:
            chosen = {
                index: hdu
                for index, hdu in enumerate(hdus)
                if hdu.is_image and _plane_shape(hdu.header) and _extension_name(hdu.header) == extension
            }
            if len({_plane_shape(hdu.header) for hdu in chosen.values()}) != 1:
                raise RawFileError(f"{name}: no extension {extension}, or several of different sizes")
            _check_stored(content, list(chosen), name, check_sums=check_sums)
            return _join(list(chosen.values()))


def _join(hdus: list[Any]) -> np.ndarray:
    """Return the pixels of HDUs side by side, in native byte order."""
    planes = [hdu.data.reshape(hdu.data.shape[-2:]) for hdu in hdus]
    pixels = planes[0] if len(planes) == 1 else np.hstack(planes)
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))


def _check_stored(content: bytes, indices: list[int], name: str, *, check_sums: bool) -> None:
    """Raise if the bytes of HDUs, as they are stored, are too few or disagree with their checksums."""
    with _opened(io.BytesIO(content), name, disable_image_compression=True) as hdus:
        for hdu in (hdus[index] for index in indices):
            needed = hdu.fileinfo()["datLoc"] + hdu.size
            if len(content) < needed:
                raise RawFileError(
                    f"{name}: truncated: {len(content)} bytes; its header needs at least {needed}"
                )
            if check_sums and hdu.verify_datasum() == 0:
                raise RawFileError(
                    f"{name}: corrupt: the pixels do not agree with DATASUM = {hdu.header['DATASUM']}; if "
                    "the card is wrong, 'spark-butler obs ingest-raws --ignore-checksums' reads the file as "
                    "it is"
                )
