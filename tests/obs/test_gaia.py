"""Gaia's archive, as a server on this machine that gives an answer which the archive gave."""

from __future__ import annotations

import gzip
import importlib.resources
import json
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import Table, vstack
from click.testing import CliRunner, Result
from lsst.daf.butler import Butler

from spark_butler.cli.main import main
from spark_butler.errors import UserError
from spark_butler.obs.gaia import Cone, cover_visits, fetch_gaia
from spark_butler.obs.refcats import ingest_refcats, parse_band_columns

ANSWER = importlib.resources.files("astroquery") / "gaia/tests/data/1710099405832VAL-result.vot"
"""Two stars of Gaia DR3, recorded by the developers of astroquery."""


class Archive(ThreadingHTTPServer):
    """A TAP service that gives one answer to all queries."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = ANSWER.read_bytes()
        self.phase = "COMPLETED"
        self.queries: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/tap-server/tap"


class _Handler(BaseHTTPRequestHandler):
    server: Archive

    def do_POST(self) -> None:
        form = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.queries.append(dict(urllib.parse.parse_qsl(form)))
        assert self.path == "/tap-server/tap/async"
        self.send_response(303)
        self.send_header("Location", f"{self.server.url}/async/17")
        self.end_headers()

    def do_GET(self) -> None:
        phase = self.server.phase
        if self.path.endswith("/async/17/phase"):
            self._send(200, phase.encode())
        elif self.path.endswith("/async/17/results/result") and phase == "COMPLETED":
            self._send(200, gzip.compress(self.server.answer))
        else:
            self._send(500, b"<VOTABLE><INFO>Column not found: phot_q</INFO></VOTABLE>")

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["obs", "fetch-refcat", *map(str, args)])


def test_stars_have_fluxes_motions_and_epoch(archive: Archive) -> None:
    stars = fetch_gaia([Cone(268.0, 29.0, 0.5)], server=archive.url)
    recorded = Table.read(str(ANSWER), format="votable")
    stars.sort("source_id")
    assert stars["source_id"].tolist() == [4583627001381815936, 5348723816842275584]
    for name in ("ra", "dec", "pmra", "pmdec", "pmra_error", "parallax", "ref_epoch"):
        np.testing.assert_array_equal(stars[name], recorded[name])
    # AB less Vega magnitudes in Gaia's bands: Riello et al. 2021, table 3.
    for band, difference in (("g", 0.1136), ("bp", 0.0154), ("rp", 0.3561)):
        magnitude = 31.4 - 2.5 * np.log10(stars[f"phot_{band}_flux"])
        np.testing.assert_allclose(magnitude, recorded[f"phot_{band}_mean_mag"] + difference, atol=1e-3)
        np.testing.assert_allclose(
            stars[f"phot_{band}_flux"] / stars[f"phot_{band}_flux_error"],
            recorded[f"phot_{band}_mean_flux_over_error"],
            rtol=1e-5,
        )


def test_the_query_has_position_radius_and_limits(archive: Archive) -> None:
    fetch_gaia([Cone(268.0, 29.25, 0.5)], max_magnitude=19.5, max_rows=100, server=archive.url)
    (query,) = archive.queries
    assert "CIRCLE('ICRS', 268.0000000, 29.2500000, 0.5000000)" in query["QUERY"]
    assert "FROM gaiadr3.gaia_source" in query["QUERY"]
    assert "phot_g_mean_mag <= 19.5" in query["QUERY"]
    assert query["MAXREC"] == "100"


@pytest.mark.parametrize("ending", ["ecsv", "fits", "vot"])
def test_ingest_refcats_takes_what_the_command_writes(
    archive: Archive, butler: Butler, tmp_path: Path, ending: str
) -> None:
    file = tmp_path / f"gaia.{ending}"
    result = run("--gaia", "--ra", 268, "--dec", 29, "--radius", 1, "--server", archive.url, "-o", file)
    assert (result.exit_code, result.stdout) == (0, f"2 stars written to {file}.\n")
    bands = [parse_band_columns("r=phot_rp_flux,phot_rp_flux_error")]
    ingest_refcats(butler, "gaia_dr3", [file], bands=bands, id_column="source_id")
    read = vstack([butler.get(ref) for ref in butler.query_datasets("gaia_dr3", collections="refcats")])
    read.sort("id")
    recorded = Table.read(str(ANSWER), format="votable")
    np.testing.assert_allclose(np.rad2deg(read["coord_ra"]), recorded["ra"], rtol=1e-14)
    # 2016.0 is MJD 57388.5.
    np.testing.assert_allclose(read["epoch"], 57388.5, atol=1e-3)
    np.testing.assert_allclose(np.rad2deg(read["pm_ra"]) * 3.6e6, recorded["pmra"], rtol=1e-12)
    np.testing.assert_allclose(
        31.4 - 2.5 * np.log10(read["r_flux"]), recorded["phot_rp_mean_mag"] + 0.3561, atol=1e-3
    )
    assert "-b BAND=phot_g_flux,phot_g_flux_error" in result.stderr


def test_visits_are_covered(archive: Archive, ingested: Butler, tmp_path: Path) -> None:
    cones = cover_visits(ingested, "SimCam")
    visits = ingested.query_dimension_records("visit", instrument="SimCam")
    assert len(cones) <= len(visits) == 2
    for visit in visits:
        corners = np.array([list(vertex) for vertex in visit.region.getVertices()])
        sky = SkyCoord(*corners.T, representation_type="cartesian")
        inside = [sky.separation(SkyCoord(cone.ra, cone.dec, unit="deg")).deg < cone.radius for cone in cones]
        assert np.any(np.all(inside, axis=1))
    assert max(cone.radius for cone in cones) < 0.1
    where = ("--repo", ingested._config.configDir.ospath, "--instrument", "SimCam")  # type: ignore[attr-defined]
    result = run("--gaia", *where, "--server", archive.url, "-o", tmp_path / "gaia.fits")
    assert (result.exit_code, result.stderr[:5]) == (0, "Next:"), result.stderr
    assert len(archive.queries) == len(cones)
    with pytest.raises(UserError, match="no visit of SimCam with 'visit = 1'; define visits first"):
        cover_visits(ingested, "SimCam", where="visit = 1")


def test_visits_of_one_field_are_one_circle() -> None:
    wide = Cone(10.0, 60.0, 0.5)
    assert wide.holds(Cone(10.5, 60.1, 0.2))
    assert not wide.holds(Cone(10.5, 60.1, 0.3))
    assert Cone(0.0, 0.0, 0.5).holds(Cone(359.8, 0.0, 0.2))


def test_json_tells_file_and_number(archive: Archive, tmp_path: Path) -> None:
    file = str(tmp_path / "gaia.ecsv")
    place = ("--gaia", "--ra", 268, "--dec", 29, "--radius", 1, "--server", archive.url, "-o", file)
    assert json.loads(run(*place, "--format", "json").stdout) == {"file": file, "stars": 2}


def test_stars_in_two_circles_count_once(archive: Archive) -> None:
    cones = [Cone(268.0, 29.0, 0.5), Cone(268.3, 29.0, 0.5)]
    assert len(fetch_gaia(cones, server=archive.url)) == 2
    assert len(archive.queries) == 2


def test_cut_answers_are_refused(archive: Archive) -> None:
    with pytest.raises(UserError, match="more than 2 stars there; give a smaller radius"):
        fetch_gaia([Cone(268.0, 29.0, 0.5)], max_rows=2, server=archive.url)
    end = b"</TABLE>"
    archive.answer = archive.answer.replace(end, end + b'<INFO name="QUERY_STATUS" value="OVERFLOW"/>')
    with pytest.raises(UserError, match="more than 2 stars there"):
        fetch_gaia([Cone(268.0, 29.0, 0.5)], server=archive.url)


def test_failures_are_one_line(archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = ("--gaia", "--ra", 268, "--dec", 29, "--radius", 1, "-o", tmp_path / "gaia.ecsv")
    archive.phase = "ERROR"
    for args, expected in (
        ((*place, "--server", archive.url), f"Can't query {archive.url}"),
        ((*place, "--server", "http://127.0.0.1:9/tap"), "Can't query http://127.0.0.1:9/tap: "),
        (
            ("--gaia", "-o", tmp_path / "gaia.ecsv"),
            "give --ra, --dec and --radius, or --repo and --instrument",
        ),
        ((*place[:-1], tmp_path / "gaia.doc"), "expected a name that ends in .ecsv, .fits, .vot"),
        ((*place[1:],), "--gaia"),
        ((*place[:4], 95, *place[5:]), "dec = 95"),
    ):
        result = run(*args)
        assert result.exit_code == 2
        assert expected in result.stderr
        assert result.stderr.count("\n") == 1
    monkeypatch.setitem(sys.modules, "astroquery.utils.tap", None)
    result = run(*place)
    assert "pip install 'spark-butler[gaia]'" in result.stderr
