"""Commands that fill a repository: ``spark-butler obs ...``.  Run in the process of the command."""

from __future__ import annotations

__all__ = ["obs"]

import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..errors import UserError
from ..text import format_count, translate_errors
from .command import CommandGroup, print_json, print_result
from .exit_status import FAILED

if TYPE_CHECKING:
    from lsst.daf.butler import DatasetRef

_DIGITS = re.compile(r"\d+")

_EPILOG = """\b
Examples:
  spark-butler obs describe my-frames/ -o my-camera.yaml
  spark-butler obs register-instrument s3-repo conf/cameras/simcam.yaml
  spark-butler obs ingest-raws s3-repo night1/ --transfer copy
  spark-butler obs ingest-calibs s3-repo --kind bias night1/
  spark-butler obs define-visits s3-repo SimCam
"""


@click.group(cls=CommandGroup, epilog=_EPILOG)
def obs() -> None:
    """Register cameras, ingest their raw frames and calibrations, define visits."""


_instrument = click.option("--instrument", help="Instrument of the files; by default from their headers.")


_needs_paths = click.argument("paths", nargs=-1, required=True)


@obs.command()
@_needs_paths
@click.option("-o", "--output", metavar="FILE", help="File to write; standard output by default.")
@click.option("--name", help="Name of the instrument; by default from the headers.")
def describe(paths: tuple[str, ...], output: str | None, name: str | None, form: str) -> None:
    """Draft the description of a camera from the headers of its files.

    PATHS are raw frames of all kinds, of one camera: FITS files, directories, globs or URIs.  Guesses are
    marked in the draft, and values that only you know are marked QUESTION.

    \b
    Example:
      spark-butler obs describe my-frames/ -o my-camera.yaml
    """
    from lsst.resources import ResourcePath

    from ..obs.camera.draft import draft_description
    from ..obs.raws import RAW_SUFFIXES
    from ..obs.repository import expand_paths

    draft = draft_description(expand_paths(paths, RAW_SUFFIXES), name=name)
    if output is not None:
        with translate_errors(UserError, f"Can't write {output}"):
            target = ResourcePath(output, forceAbsolute=False)
            if target.exists():
                raise UserError(f"The file {output} exists; give another name.")
            target.write(draft.text.encode())
    if form == "json":
        failures = _list_failures(draft.failures)
        print_json({"description": draft.text, "questions": draft.questions, "failures": failures})
    elif output is None:
        click.echo(draft.text, nl=False)
    for question in draft.questions:
        click.echo(f"QUESTION {question}", err=True)
    file = output or "CAMERA.yaml"
    click.echo(f"Check the guesses, then: spark-butler obs register-instrument REPO {file}", err=True)
    _end_with(draft.failures)


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
    text = f"{camera.name} is registered, with {format_count(n, 'detector')}."
    print_result(form, {"instrument": camera.name, "detectors": n}, text)


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
@click.option(
    "--ignore-checksums",
    is_flag=True,
    help="Read these files even where pixels disagree with DATASUM; ingests again what is there.",
)
def ingest_raws(repo: str, paths: tuple[str, ...], form: str, **options: Any) -> None:
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
        result = ingest_raws(butler, paths, **options)
    n_ingested, n_existing, n_failed = map(len, (result.ingested, result.existing, result.failures))
    print_result(
        form,
        {
            "ingested": n_ingested,
            "existing": n_existing,
            "failed": n_failed,
            "skipped": _list_data_ids(result.existing),
            "failures": _list_failures(result.failures),
        },
        f"{format_count(n_ingested, 'file')} ingested, {n_existing} were there already, {n_failed} failed.",
    )
    _end_with(result.failures)


@obs.command()
@click.argument("repo")
@_needs_paths
@click.option("--kind", type=click.Choice(["bias", "dark", "flat", "defects"]), required=True)
@click.option(
    "--master", is_flag=True, help="The files are masters already: assembled, in the masters' units."
)
@_instrument
@click.option("--detector", help="Identifier or name of the detector that the defects are of.")
@click.option("--output-run", help="RUN collection; INSTRUMENT/calib/KIND/TIMESTAMP by default.")
@click.option("--begin-date", help="Start of validity (ISO, UTC); unbounded by default.")
@click.option("--end-date", help="End of validity (ISO, UTC); unbounded by default.")
@click.option("--replace", is_flag=True, help="Decertify masters that are valid at the same times.")
def ingest_calibs(repo: str, begin_date: str | None, end_date: str | None, form: str, **options: Any) -> None:
    """Combine raw calibration frames into masters, and certify them in INSTRUMENT/calib.

    Frames of other kinds among PATHS are skipped.  A dark needs a certified bias; a flat needs a certified
    bias and dark, if the camera has them.  Defects are tables of rectangles or pixels, or images that are
    not 0 at bad pixels.

    \b
    Example:
      spark-butler obs ingest-calibs s3-repo --kind bias raw/
      spark-butler obs ingest-calibs s3-repo --kind dark raw/
      spark-butler obs ingest-calibs s3-repo --kind flat raw/
      spark-butler obs ingest-calibs s3-repo --kind defects --detector 3 bad-pixels.ecsv
    """
    from ..obs.calibs import ingest_calibs, parse_validity
    from ..obs.repository import writing_butler

    validity = parse_validity(begin_date, end_date)
    failures: dict[str, str] = {}
    with writing_butler(repo) as butler:
        refs = ingest_calibs(butler, validity=validity, failures=failures, **options)
    kind, run = options["kind"], refs[0].run
    what = "Table of defects" if kind == "defects" else format_count(len(refs), f"{kind} master")
    masters = {"kind": kind, "certified": len(refs), "run": run, "masters": _list_data_ids(refs)}
    print_result(form, masters | {"failures": _list_failures(failures)}, f"{what} certified, in {run}.")
    _end_with(failures)


@obs.command()
@click.argument("repo")
@click.argument("instrument")
@click.option("--where", default="", help="Expression that selects exposures, as in 'pipetask -d'.")
@click.option(
    "--padding",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    metavar="PIXELS",
    help="How far the regions of visits reach beyond the detectors, to allow for errors of the pointing.",
)
def define_visits(repo: str, instrument: str, where: str, padding: int, form: str) -> None:
    """Define a visit for each science exposure.

    \b
    Example:
      spark-butler obs define-visits s3-repo SimCam --where "exposure.day_obs = 20260101"
    """
    from ..obs.repository import writing_butler
    from ..obs.visits import define_visits

    with writing_butler(repo) as butler:
        visits = define_visits(butler, instrument, where=where, padding=padding)
    defined = {"instrument": instrument, "defined": len(visits), "visits": visits}
    print_result(form, defined, f"{format_count(len(visits), 'visit')} defined.")


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
    failures: dict[str, str] = {}
    with writing_butler(repo) as butler:
        refs = ingest_refcats(butler, bands=bands, failures=failures, **options)
    name, run = options["name"], refs[0].run
    print_result(
        form,
        {"name": name, "shards": len(refs), "run": run, "failures": _list_failures(failures)},
        f"{format_count(len(refs), 'shard')} of {name} ingested into {run}.",
    )
    _end_with(failures)


@obs.command()
@click.option(
    "--gaia", is_flag=True, required=True, expose_value=False, help="Stars of Gaia's third data release."
)
@click.option("-o", "--output", metavar="FILE", required=True, help="File to write: .ecsv, .fits or .vot.")
@click.option("--ra", type=float, help="Right ascension of the center in degrees.")
@click.option("--dec", type=float, help="Declination of the center in degrees.")
@click.option("--radius", type=float, help="Radius in degrees.")
@click.option("--repo", help="Repository whose visits are covered, instead of a circle.")
@click.option("--instrument", help="Instrument of the visits.")
@click.option("--where", default="", help="Expression that selects visits, as in 'pipetask -d'.")
@click.option("--max-magnitude", type=float, default=21.0, show_default=True, help="Faintest G magnitude.")
@click.option("--max-rows", type=click.IntRange(min=1), default=1_000_000, show_default=True)
@click.option("--server", metavar="URL", help="TAP service; ESA's archive by default.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def fetch_refcat(
    output: str,
    repo: str | None,
    instrument: str | None,
    where: str,
    overwrite: bool,
    form: str,
    **options: Any,
) -> None:
    """Write a table of reference stars that ingest-refcats reads.

    It needs the extra 'gaia' of this package, and the network.

    \b
    Examples:
      spark-butler obs fetch-refcat --gaia --ra 14.8 --dec -72.2 --radius 0.3 -o gaia.ecsv
      spark-butler obs fetch-refcat --gaia --repo s3-repo --instrument SimCam -o gaia.ecsv
    """
    from lsst.daf.butler import Butler

    from ..obs.gaia import GAIA_TAP, Cone, check_file, cover_visits, fetch_gaia, write_references
    from ..repository.checks import check_repository

    check_file(output, overwrite=overwrite)
    circle = [options.pop(name) for name in ("ra", "dec", "radius")]
    if None not in circle and repo is None:
        cones = [Cone(*circle)]
    elif repo is not None and instrument is not None and circle == [None, None, None]:
        check_repository(repo)
        with Butler.from_config(repo, writeable=False) as butler:
            cones = cover_visits(butler, instrument, where=where)
    else:
        raise UserError("give --ra, --dec and --radius, or --repo and --instrument")
    stars = fetch_gaia(cones, server=options.pop("server") or GAIA_TAP, **options)
    write_references(stars, output, overwrite=overwrite)
    if form == "json":
        print_json({"file": output, "stars": len(stars)})
        return
    click.echo(f"{format_count(len(stars), 'star')} written to {output}.")
    click.echo(
        "Next: spark-butler obs ingest-refcats REPO --name gaia_dr3 --id-column source_id "
        f"-b BAND=phot_g_flux,phot_g_flux_error {output}",
        err=True,
    )


def _list_failures(failures: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"file": file, "reason": " ".join(reason.split())} for file, reason in failures.items()]


def _end_with(failures: Mapping[str, str]) -> None:
    """Print the files that could not be used, one line for each reason, and end with exit status 1."""
    files: defaultdict[str, list[str]] = defaultdict(list)
    for file, reason in failures.items():
        # The same error has other numbers in other files.
        files[_DIGITS.sub("0", reason.removeprefix(f"{file}: "))].append(file)
    for alike in files.values():
        more = f" (and {format_count(len(alike) - 1, 'file')} alike, such as {alike[1]})" if alike[1:] else ""
        click.echo(f"Error: {' '.join(failures[alike[0]].split())}{more}", err=True)
    if failures:
        sys.exit(FAILED)


def _list_data_ids(refs: Sequence[DatasetRef]) -> list[dict[str, Any]]:
    return [dict(ref.dataId.required) for ref in refs]
