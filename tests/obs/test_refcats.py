from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import astropy.units as u
import numpy as np
import pyarrow.parquet
import pytest
from astropy.table import Table, vstack
from lsst.daf.butler import Butler
from lsst.daf.butler.formatters.parquet import astropy_to_arrow
from lsst.sphgeom import HtmPixelization, LonLat, UnitVector3d

from spark_butler.demo.simulation import SimulatedData
from spark_butler.errors import RepositoryError, UserError
from spark_butler.obs.refcats import ingest_refcats, parse_band_columns

R_BAND = [parse_band_columns("r=r_mag,r_mag_err")]


def _read_back(butler: Butler, name: str) -> Table:
    return vstack([butler.get(ref) for ref in butler.query_datasets(name, collections="refcats")])


def test_simulated_stars_come_back_in_radians_and_nanojansky(ingested: Butler, night: SimulatedData) -> None:
    given = Table.read(night.refcat)
    read = _read_back(ingested, "sim_refcat")
    read.sort("id")
    given.sort("id")
    assert read.colnames == ["id", "coord_ra", "coord_dec", "r_flux", "r_fluxErr"]
    assert (read["coord_ra"].unit, read["r_flux"].unit) == (u.rad, u.nJy)
    np.testing.assert_array_equal(read["id"], given["id"])
    np.testing.assert_allclose(np.rad2deg(read["coord_ra"]), given["ra"], rtol=1e-12)
    np.testing.assert_allclose(-2.5 * np.log10(read["r_flux"]) + 31.4, given["r_mag"], atol=1e-6)
    np.testing.assert_allclose(read["r_fluxErr"] / read["r_flux"], 0.4 * np.log(10) * given["r_mag_err"])


def test_each_source_is_in_the_shard_of_its_trixel(butler: Butler, tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    table = Table({"ra": rng.uniform(10, 13, 300), "dec": rng.uniform(-1, 1, 300), "flux": np.ones(300)})
    table.write(tmp_path / "cat.csv")
    refs = ingest_refcats(butler, "wide", [tmp_path / "cat.csv"], bands=[parse_band_columns("g=flux")])
    assert len(refs) > 5
    pixelization = HtmPixelization(7)
    count = 0
    for ref in refs:
        for row in (shard := butler.get(ref)):
            point = UnitVector3d(LonLat.fromRadians(row["coord_ra"], row["coord_dec"]))
            assert pixelization.index(point) == ref.dataId["htm7"]
        count += len(shard)
    assert count == 300


def test_units_of_fluxes_are_converted(butler: Butler, tmp_path: Path) -> None:
    table = Table({"ra": [10.0], "dec": [0.0], "f": [3.0] * u.uJy, "e": [1.0] * u.uJy, "m": [20.0] * u.mag})
    pyarrow.parquet.write_table(astropy_to_arrow(table), tmp_path / "cat.parquet")
    bands = [parse_band_columns(text) for text in ("g=f,e", "r=m")]
    (ref,) = ingest_refcats(butler, "units", [tmp_path / "cat.parquet"], bands=bands)
    (row,) = butler.get(ref)
    assert (row["id"], row["g_flux"], row["g_fluxErr"]) == (1, pytest.approx(3000), pytest.approx(1000))
    assert row["r_flux"] == pytest.approx((20 * u.ABmag).to_value(u.nJy))


@pytest.mark.parametrize("ending", ["vot", "xml", "ecsv", "fits", "parquet", "csv"])
def test_plain_tables_keep_proper_motions_in_every_format(
    butler: Butler, tmp_path: Path, ending: str
) -> None:
    table = Table(
        {
            **{"source_id": [7, 8], "ra": [10.0, 10.1] * u.deg, "dec": [0.1, 0.2] * u.deg},
            **{"phot_g_mean_mag": [15.0, 16.0] * u.mag, "ref_epoch": [2016.0, 2016.0] * u.yr},
            **{"pmra": [100.0, np.nan] * u.mas / u.yr, "pmdec": [-50.0, np.nan] * u.mas / u.yr},
        }
    )
    path = tmp_path / f"gaia.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(astropy_to_arrow(table), path)
    else:
        table.write(path, **({"format": "votable"} if ending in ("vot", "xml") else {}))
    bands = [parse_band_columns("g=phot_g_mean_mag")]
    ingest_refcats(butler, "gaia", [path], bands=bands, id_column="source_id")
    read = _read_back(butler, "gaia")
    read.sort("id")
    assert read["id"].tolist() == [7, 8]
    # A tenth of an arcsecond a year is 4.848e-7 radians; 2016.0 is MJD 57388.5.
    np.testing.assert_allclose(read["pm_ra"], [4.8481368e-7, 0.0], rtol=1e-7)
    np.testing.assert_allclose(read["pm_dec"], [-2.4240684e-7, 0.0], rtol=1e-7)
    np.testing.assert_allclose(read["epoch"], 57388.5, atol=1e-3)
    np.testing.assert_allclose(-2.5 * np.log10(read["g_flux"]) + 31.4, [15.0, 16.0], atol=1e-6)


@pytest.mark.parametrize(
    ("columns", "bands", "expected"),
    [
        ({"ra": [1.0], "dec": [2.0], "r_mag": [20.0]}, [], "no band columns were given"),
        ({"ra": [1.0], "r_mag": [20.0]}, ["r=r_mag"], "no column 'dec'; known are r_mag, ra"),
        ({"ra": [1.0], "dec": [2.0]}, ["r=r_mag"], "no column 'r_mag'; known are dec, ra"),
        ({"ra": [1.0], "dec": [95.0], "r_mag": [20.0]}, ["r=r_mag"], "not on the sky"),
    ],
)
def test_table_that_lacks_something_is_named(
    butler: Butler, tmp_path: Path, columns: dict[str, list[float]], bands: list[str], expected: str
) -> None:
    Table(columns).write(tmp_path / "bad.csv")
    with pytest.raises(UserError, match=expected) as caught:
        ingest_refcats(butler, "bad", [tmp_path / "bad.csv"], bands=[parse_band_columns(b) for b in bands])
    assert "bad.csv" in str(caught.value)
    assert not list(butler.registry.queryDatasetTypes("bad"))


def test_file_that_is_no_table_is_named(butler: Butler, tmp_path: Path) -> None:
    (tmp_path / "bad.fits").write_text("no table")
    with pytest.raises(UserError, match=r"bad\.fits: not a readable table"):
        ingest_refcats(butler, "bad", [tmp_path / "bad.fits"], bands=R_BAND)


@pytest.mark.parametrize("text", ["r", "r=", "=r_mag", "r=a,b,c"])
def test_band_columns_have_one_form(text: str) -> None:
    with pytest.raises(UserError, match="not of the form BAND=COLUMN"):
        parse_band_columns(text)


def test_shards_that_are_there_give_way_only_if_told(butler: Butler, night: SimulatedData) -> None:
    first = ingest_refcats(butler, "cat", [night.refcat], bands=R_BAND)
    with pytest.raises(RepositoryError, match=r"refcats/cat has shards of cat already \(\d+"):
        ingest_refcats(butler, "cat", [night.refcat], bands=R_BAND)
    second = ingest_refcats(butler, "cat", [night.refcat], bands=R_BAND, replace=True)
    assert {ref.dataId for ref in first} == {ref.dataId for ref in second}
    assert butler.collections.get_info("refcats").children == ("refcats/cat",)


def test_real_shards_keep_their_names_and_fluxes(butler: Butler, real_data: Callable[[str], Path]) -> None:
    folder = real_data("refcat_stripe82")
    refs = ingest_refcats(butler, "gaia_dr2", [folder / "18*.fits"])
    assert {ref.dataId["htm7"] for ref in refs} == {189584, 189648}
    gaia = _read_back(butler, "gaia_dr2")
    assert len(gaia) == 5739
    assert {"id", "coord_ra", "coord_dec", "phot_g_mean_flux", "phot_g_mean_fluxErr"} <= set(gaia.colnames)
    ingest_refcats(
        butler, "ps1_pv3", [folder / "ps1*.fits"], bands=[parse_band_columns("r=r_flux,r_fluxErr")]
    )
    ps1 = _read_back(butler, "ps1_pv3")
    assert len(ps1) == 35202
    assert "g_flux" not in ps1.colnames
    given = vstack(
        [Table.read(path) for path in sorted(folder.glob("ps1*.fits"))], metadata_conflicts="silent"
    )
    ps1.sort("id")
    given.sort("id")
    assert np.isnan(ps1["r_flux"]).sum() == given["r_flux"].mask.sum()
    good = ~given["r_flux"].mask
    np.testing.assert_array_equal(ps1["r_flux"][good], given["r_flux"][good])
