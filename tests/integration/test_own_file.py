"""The steps of the page on processing your own FITS file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

_ROOT = Path(__file__).resolve().parents[2]
_PAGE = _ROOT / "docs" / "your-own-file.md"
_SHAPE = (400, 600)
_STARS = 60


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", _PAGE.read_text(), re.MULTILINE | re.DOTALL)


def _write_frame(path: Path, second: int) -> tuple[np.ndarray, np.ndarray]:
    """Write a frame with stars; return where they are."""
    rng = np.random.default_rng(5)
    x, y = rng.uniform(15, _SHAPE[1] - 15, _STARS), rng.uniform(15, _SHAPE[0] - 15, _STARS)
    rows, columns = np.indices(_SHAPE)
    image = np.full(_SHAPE, 1500.0)
    for each_x, each_y, flux in zip(x, y, 10 ** rng.uniform(4.2, 5.5, _STARS), strict=True):
        distance = (columns - each_x) ** 2 + (rows - each_y) ** 2
        image += flux / (2 * np.pi * 2.0**2) * np.exp(-distance / (2 * 2.0**2))
    image = rng.poisson(image) + rng.normal(0.0, 5.0, _SHAPE)
    header = fits.Header()
    header["INSTRUME"] = "Backyard CCD"
    header["IMAGETYP"] = "Light Frame"
    header["DATE-OBS"] = f"2026-01-01T22:10:{second:02d}"
    header["EXPTIME"] = 30.0
    header["FILTER"] = "Green"
    header["OBJCTRA"] = "16 41 41"
    header["OBJCTDEC"] = "+36 27 35"
    fits.PrimaryHDU(image.clip(0, 65535).astype(np.uint16), header).writeto(path)
    return x, y


@pytest.mark.slow
def test_from_a_fits_file_to_its_catalog(tmp_path: Path) -> None:
    frames = tmp_path / "my-frames"
    frames.mkdir()
    x, y = _write_frame(frames / "m13_001.fits", 5)
    _write_frame(frames / "m13_002.fits", 45)
    for name in ("jobs", "conf", ".venv"):
        (tmp_path / name).symlink_to(_ROOT / name if name != ".venv" else Path(sys.prefix))
    (tmp_path / "backyard.yaml").write_text(_blocks("yaml")[0])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_"))}
    environment |= {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    environment["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), environment["PATH"]])
    script = "set -euo pipefail\n" + "".join(_blocks("sh"))
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = {re.sub(r"\s+", " ", line).strip() for line in done.stdout.splitlines()}
    for block in _blocks("text"):
        assert {re.sub(r"\s+", " ", line).strip() for line in block.splitlines()} <= said
    python = [sys.executable, "-c", _blocks("python")[0]]
    subprocess.run(python, cwd=tmp_path, env=environment, check=True, capture_output=True)
    sources = Table.read(tmp_path / "sources.csv")
    assert len(sources) == len(Table.read(tmp_path / "sources.parquet"))
    first = sources[sources["visit"] == sources["visit"].min()]
    nearest = [
        np.hypot(first["x"] - star_x, first["y"] - star_y).min() for star_x, star_y in zip(x, y, strict=True)
    ]
    assert np.mean(np.array(nearest) < 1.0) > 0.8
    assert len(first) < 1.5 * _STARS
