from __future__ import annotations

import bz2
import gzip
import pickle
import shutil
from pathlib import Path
from typing import Any

import astropy.io.fits
import lsst.images
import numpy as np
import pytest
from lsst.daf.butler import Butler
from lsst.resources import ResourcePath

from spark_butler.demo.simulation import SimulatedData
from spark_butler.errors import UserError
from spark_butler.obs import CameraDescription, RawFileError
from spark_butler.obs.camera.exposures import read_raw_file
from spark_butler.obs.camera.header_fields import HeaderValueError
from spark_butler.obs.camera.raw_fits import read_raw_header, read_raw_pixels
from spark_butler.obs.raws import ingest_raws


def _data_id(night: SimulatedData, detector: int = 0) -> dict[str, Any]:
    return {"instrument": "SimCam", "exposure": night.visits[0], "detector": detector}


def test_raw_has_the_files_pixels_and_header(ingested: Butler, night: SimulatedData) -> None:
    raw = ingested.get("raw", _data_id(night, 1), collections="SimCam/raw/all")
    path = night.raw_dir / f"object_{night.visits[0]}_01.fits"
    assert isinstance(raw, lsst.images.Image)
    assert raw.array.dtype == np.uint16
    np.testing.assert_array_equal(raw.array, astropy.io.fits.getdata(path))
    assert str(raw.unit) == "adu"
    header = astropy.io.fits.getheader(path)
    assert raw.metadata["EXPTIME"] == header["EXPTIME"]
    assert raw.metadata["RA"] == header["RA"]
    assert raw.metadata["OBSID"] == header["OBSID"]


def test_subimage_and_component_can_be_read(ingested: Butler, night: SimulatedData) -> None:
    ref = ingested.find_dataset("raw", _data_id(night), collections="SimCam/raw/all")
    assert ref is not None
    whole = ingested.get(ref)
    box = lsst.images.Box.factory[10:20, 30:70]
    part = ingested.get(ref, parameters={"bbox": box})
    assert part.bbox == box
    np.testing.assert_array_equal(part.array, whole.array[10:20, 30:70])
    assert ingested.get(ref.makeComponentRef("bbox")) == whole.bbox


@pytest.fixture
def one_raw(tmp_path: Path, night: SimulatedData) -> Path:
    return Path(shutil.copy(night.raw_dir / f"object_{night.visits[0]}_00.fits", tmp_path / "one.fits"))


def _truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _truncate_by_one_pixel(path: Path) -> None:
    with astropy.io.fits.open(path) as hdus:
        end = hdus[0].fileinfo()["datLoc"] + hdus[0].size
    path.write_bytes(path.read_bytes()[: end - 2])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20_000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(_truncate, "truncated"), (_truncate_by_one_pixel, "truncated"), (_flip_a_bit, "DATASUM")],
)
def test_bad_pixels_are_ingested_and_named_when_read(
    simcam: Butler, night: SimulatedData, one_raw: Path, spoil: Any, reason: str
) -> None:
    spoil(one_raw)
    assert len(ingest_raws(simcam, [one_raw], transfer="direct").ingested) == 1
    with pytest.raises(Exception, match=reason) as caught:
        simcam.get("raw", _data_id(night), collections="SimCam/raw/all")
    assert str(one_raw) in str(caught.value)


def test_wrong_checksum_is_overridden_only_when_told(
    simcam: Butler, night: SimulatedData, one_raw: Path
) -> None:
    _flip_a_bit(one_raw)
    ingest_raws(simcam, [one_raw], transfer="direct")
    with pytest.raises(Exception, match="obs ingest-raws --ignore-checksums"):
        simcam.get("raw", _data_id(night), collections="SimCam/raw/all")
    result = ingest_raws(simcam, [one_raw], transfer="copy", ignore_checksums=True)
    assert len(result.ingested) == 1
    raw = simcam.get("raw", _data_id(night), collections="SimCam/raw/all")
    np.testing.assert_array_equal(raw.array, astropy.io.fits.getdata(one_raw))
    stored = simcam.getURI(result.ingested[0])
    with pytest.raises(UserError, match="is the repository's own file"):
        ingest_raws(simcam, [stored], transfer="direct", ignore_checksums=True)
    assert stored.exists()


def test_the_cause_of_a_bad_file_is_a_raw_file_error(one_raw: Path) -> None:
    _truncate(one_raw)
    with one_raw.open("rb") as stream, pytest.raises(RawFileError, match=r"one\.fits: truncated") as caught:
        read_raw_pixels(stream, "one.fits")
    assert isinstance(caught.value, OSError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("content", [b"", b"SIMPLE  =", b"no FITS file" * 1000])
def test_header_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.fits"
    path.write_bytes(content)
    with pytest.raises(RawFileError, match=r"bad\.fits: not a readable FITS image"):
        read_raw_header(path)


def test_file_without_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.fits"
    astropy.io.fits.PrimaryHDU().writeto(path)
    with pytest.raises(RawFileError, match="no HDU holds a two-dimensional image"):
        read_raw_header(path)


@pytest.mark.parametrize("how", ["gzip", "bzip2", "fpack", "extension"])
def test_packed_files_are_read_and_checked(tmp_path: Path, how: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 60_000, (50, 40)).astype(np.uint16)
    path = tmp_path / "packed.fits"
    primary = astropy.io.fits.PrimaryHDU(pixels if how in ("gzip", "bzip2") else None)
    primary.header["EXPID"] = 7
    hdus = [primary]
    if how == "fpack":
        hdus.append(astropy.io.fits.CompImageHDU(pixels))
    if how == "extension":
        hdus.append(astropy.io.fits.ImageHDU(pixels))
    astropy.io.fits.HDUList(hdus).writeto(path, checksum=True)
    if how == "gzip":
        path.write_bytes(gzip.compress(path.read_bytes()))
    if how == "bzip2":
        path.write_bytes(bz2.compress(path.read_bytes()))
    with path.open("rb") as stream:
        read, header = read_raw_pixels(stream, "packed")
    np.testing.assert_array_equal(read, pixels)
    assert header["EXPID"] == 7
    assert read_raw_header(path)["EXPID"] == 7
    _truncate(path)
    with path.open("rb") as stream, pytest.raises(RawFileError, match="truncated"):
        read_raw_pixels(stream, "packed")


def test_amplifiers_in_extensions_of_their_own_are_joined_from_left_to_right(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    planes = [rng.integers(0, 60_000, (8, 9)).astype(np.uint16) for _ in range(4)]
    path = tmp_path / "four.fits"
    hdus = [astropy.io.fits.PrimaryHDU(), *(astropy.io.fits.ImageHDU(plane) for plane in planes)]
    astropy.io.fits.HDUList(hdus).writeto(path, checksum=True)
    with path.open("rb") as stream:
        pixels, header = read_raw_pixels(stream, "four")
    np.testing.assert_array_equal(pixels, np.concatenate(planes, axis=1))
    assert (header["NAXIS1"], header["NAXIS2"]) == (36, 8)
    content = bytearray(path.read_bytes())
    # The first pixel of the last plane, which fills one block.
    content[-2880] ^= 1
    path.write_bytes(content)
    with path.open("rb") as stream, pytest.raises(RawFileError, match="DATASUM"):
        read_raw_pixels(stream, "four")


def test_extensions_that_the_description_does_not_speak_of_are_refused(
    tmp_path: Path, night: SimulatedData
) -> None:
    camera = CameraDescription.from_yaml(night.camera)
    source = sorted(night.raw_dir.glob("object_*"))[0]
    with astropy.io.fits.open(source) as hdus:
        both = [hdus[0], astropy.io.fits.ImageHDU(hdus[0].data)]
        astropy.io.fits.HDUList(both).writeto(tmp_path / "two.fits")
    with pytest.raises(HeaderValueError, match=r"two\.fits: 2 HDUs hold images of the same size"):
        read_raw_file(ResourcePath(tmp_path / "two.fits"), [camera])


def test_companions_of_the_pixels_and_other_images_are_passed_over(tmp_path: Path) -> None:
    pixels = np.arange(72, dtype=np.uint16).reshape(1, 8, 9)
    path = tmp_path / "planes.fits"
    astropy.io.fits.HDUList(
        [
            astropy.io.fits.PrimaryHDU(pixels),
            astropy.io.fits.ImageHDU(np.zeros((8, 9), dtype=np.uint8), name="DQ"),
            astropy.io.fits.ImageHDU(np.zeros((3, 4), dtype=np.uint8), name="GUIDE"),
            # A mask without a name.
            astropy.io.fits.ImageHDU(np.zeros((8, 9), dtype=np.uint8)),
        ]
    ).writeto(path)
    with path.open("rb") as stream:
        # A cube of one plane is an image.
        np.testing.assert_array_equal(read_raw_pixels(stream, "planes")[0], pixels[0])
