"""Commands that fill a repository: ``spark-butler obs ...``.  Run in the process of the command."""

from __future__ import annotations

__all__ = ["obs"]

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from .command import CommandGroup, print_json

if TYPE_CHECKING:
    from lsst.daf.butler import DatasetRef

_EPILOG = """\b
Examples:
  spark-butler obs register-instrument s3-repo conf/cameras/simcam.yaml
  spark-butler obs ingest-raws s3-repo night1/ --transfer copy
  spark-butler obs ingest-calibs s3-repo --kind bias night1/
  spark-butler obs define-visits s3-repo SimCam
"""


@click.group(cls=CommandGroup, epilog=_EPILOG)
def obs() -> None:
    """Register cameras, ingest their raw frames and calibrations, define visits."""


_instrument = click.option("--instrument", help="Instrument of the files; by default from their headers.")


def _needs_paths[F: Callable[..., Any]](command: F) -> F:
    return click.argument("paths", nargs=-1, required=True)(command)


@obs.command()
@click.argument("repo")
@click.argument("camera_yaml")
@click.option("--update", is_flag=True, help="Replace the description in the repository.")
def register_instrument(repo: str, camera_yaml: str, update: bool, form: str) -> None:
    """Register the instrument that CAMERA_YAML describes.

    \b
    Example:
      spark-butler obs register-instrument s3-repo conf/cameras/simcam.yaml
    """
    from ..obs.register import register_instrument
    from ..obs.repository import writing_butler

    with writing_butler(repo) as butler:
        camera = register_instrument(butler, camera_yaml, update=update)
    n = len(camera.detectors)
    if form == "json":
        print_json({"instrument": camera.name, "detectors": n})
        return
    click.echo(f"{camera.name} is registered, with {n} detector{'' if n == 1 else 's'}.")


@obs.command()
@click.argument("repo")
@_needs_paths
@_instrument
@click.option("--output-run", help="RUN collection; INSTRUMENT/raw/all by default.")
@click.option(
    "-t",
    "--transfer",
    type=click.Choice(["auto", "link", "symlink", "hardlink", "copy", "move", "relsymlink", "direct"]),
    default="auto",
    show_default=True,
    help="Mode of transfer into the datastore; 'direct' leaves the files in their place.",
)
@click.option("--fail-fast", is_flag=True, help="Ingest nothing if any file is bad.")
def ingest_raws(
    repo: str,
    paths: tuple[str, ...],
    instrument: str | None,
    output_run: str | None,
    transfer: str,
    fail_fast: bool,
    form: str,
) -> None:
    """Ingest raw science and calibration frames.

    PATHS are FITS files, directories, globs or URIs.  Files that can't be ingested are listed and the exit
    status is 1; all other files are ingested.

    \b
    Example:
      spark-butler obs ingest-raws s3-repo night1/ 'night2/*.fits' --transfer copy
    """
    from ..obs.raws import ingest_raws
    from ..obs.repository import writing_butler

    with writing_butler(repo) as butler:
        result = ingest_raws(
            butler,
            paths,
            instrument=instrument,
            output_run=output_run,
            transfer=transfer,
            fail_fast=fail_fast,
        )
    reasons = {file: " ".join(reason.split()) for file, reason in result.failures.items()}
    if form == "json":
        print_json(
            {
                "ingested": len(result.ingested),
                "existing": len(result.existing),
                "failed": len(reasons),
                "skipped": _list_data_ids(result.existing),
                "failures": [{"file": file, "reason": reason} for file, reason in reasons.items()],
            }
        )
    else:
        click.echo(
            f"{len(result.ingested)} files ingested, {len(result.existing)} were there already, "
            f"{len(reasons)} failed."
        )
    for reason in reasons.values():
        click.echo(f"Error: {reason}", err=True)
    if result.failures:
        sys.exit(1)


@obs.command()
@click.argument("repo")
@_needs_paths
@click.option("--kind", type=click.Choice(["bias", "dark", "flat"]), required=True)
@click.option(
    "--master", is_flag=True, help="The files are masters already: assembled, in the masters' units."
)
@_instrument
@click.option("--output-run", help="RUN collection; INSTRUMENT/calib/KIND/TIMESTAMP by default.")
@click.option("--begin-date", help="Start of validity (ISO, UTC); unbounded by default.")
@click.option("--end-date", help="End of validity (ISO, UTC); unbounded by default.")
@click.option("--replace", is_flag=True, help="Decertify masters that are valid at the same times.")
def ingest_calibs(repo: str, begin_date: str | None, end_date: str | None, form: str, **options: Any) -> None:
    """Combine raw calibration frames into masters, and certify them in INSTRUMENT/calib.

    Frames of other kinds among PATHS are skipped.  A dark needs a certified bias; a flat needs a certified
    bias and dark, if the camera has them.

    \b
    Example:
      spark-butler obs ingest-calibs s3-repo --kind bias raw/
      spark-butler obs ingest-calibs s3-repo --kind dark raw/
      spark-butler obs ingest-calibs s3-repo --kind flat raw/
    """
    from ..obs.calibs import ingest_calibs, parse_validity
    from ..obs.repository import writing_butler

    validity = parse_validity(begin_date, end_date)
    with writing_butler(repo) as butler:
        refs = ingest_calibs(butler, validity=validity, **options)
    if form == "json":
        masters = _list_data_ids(refs)
        print_json({"kind": options["kind"], "certified": len(refs), "run": refs[0].run, "masters": masters})
        return
    click.echo(f"{len(refs)} {options['kind']} masters certified, in {refs[0].run}.")


@obs.command()
@click.argument("repo")
@click.argument("instrument")
@click.option("--where", default="", help="Expression that selects exposures, as in 'pipetask -d'.")
def define_visits(repo: str, instrument: str, where: str, form: str) -> None:
    """Define a visit for each science exposure.

    \b
    Example:
      spark-butler obs define-visits s3-repo SimCam --where "exposure.day_obs = 20260101"
    """
    from ..obs.repository import writing_butler
    from ..obs.visits import define_visits

    with writing_butler(repo) as butler:
        visits = define_visits(butler, instrument, where=where)
    if form == "json":
        print_json({"instrument": instrument, "defined": len(visits), "visits": visits})
        return
    click.echo(f"{len(visits)} visits defined.")


@obs.command()
@click.argument("repo")
@_needs_paths
@click.option("--name", required=True, help="Name of the dataset type, such as gaia_dr2.")
@click.option(
    "-b",
    "--band-columns",
    multiple=True,
    metavar="BAND=COLUMN[,ERROR]",
    help="Flux or AB magnitude of a band, and its error.  May be repeated.",
)
@click.option("--ra-column", default="ra", show_default=True, help="Right ascension in degrees.")
@click.option("--dec-column", default="dec", show_default=True, help="Declination in degrees.")
@click.option("--id-column", default="id", show_default=True)
@click.option("--output-run", help="RUN collection; refcats/NAME by default.")
@click.option("--replace", is_flag=True, help="Replace existing shards of the collection.")
def ingest_refcats(repo: str, band_columns: tuple[str, ...], form: str, **options: Any) -> None:
    """Ingest a reference catalog as htm7 shards.

    PATHS are LSST reference catalog files, or tables with positions in degrees.

    \b
    Examples:
      spark-butler obs ingest-refcats s3-repo --name ps1_pv3 ps1/
      spark-butler obs ingest-refcats s3-repo --name sim_refcat -b r=r_mag,r_mag_err refcat.ecsv
    """
    from ..obs.refcats import ingest_refcats, parse_band_columns
    from ..obs.repository import writing_butler

    bands = [parse_band_columns(text) for text in band_columns]
    with writing_butler(repo) as butler:
        refs = ingest_refcats(butler, bands=bands, **options)
    if form == "json":
        print_json({"name": options["name"], "shards": len(refs), "run": refs[0].run})
        return
    click.echo(f"{len(refs)} shards of {options['name']} ingested into {refs[0].run}.")


def _list_data_ids(refs: Sequence[DatasetRef]) -> list[dict[str, Any]]:
    return [dict(ref.dataId.required) for ref in refs]
