"""The ``spark-butler`` command."""

from __future__ import annotations

__all__ = ("main",)

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

_RUN_COMMANDS = {
    "plan": "Print how a pipeline would run, with the options of 'run'.",
    "run": "Build and run a pipeline on Spark, with the options of 'pipetask run'.",
}

_WATCH_COMMANDS = {
    "cancel": "Ask a run to end.",
    "report": "Print the report of a run that has ended.",
    "status": "Say how runs stand, while they go on and afterwards.",
}

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Group(click.Group):
    """A group that prints a `UserError` of any of its commands as one line, with exit status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        from .errors import UserError

        try:
            return super().invoke(ctx)
        except UserError as err:
            click.echo(f"Error: {' '.join(str(err).split())}", err=True)
            ctx.exit(2)


class _Main(_Group):
    """The top group; its commands that need the middleware are imported only when named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_RUN_COMMANDS, *_WATCH_COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _WATCH_COMMANDS:
            from . import cli_reports

            command: click.Command = getattr(cli_reports, cmd_name)
            return command
        if cmd_name not in _RUN_COMMANDS:
            return super().get_command(ctx, cmd_name)
        from .cli_run import make_run_command

        return make_run_command(cmd_name, only_plan=cmd_name == "plan")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name in _RUN_COMMANDS:
            # These have the logging options of pipetask, which may stand before them, too.
            rest = [*_logging_arguments(ctx.params), *rest]
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = _RUN_COMMANDS | _WATCH_COMMANDS
        rows.update((name, each.get_short_help_str(80)) for name, each in self.commands.items())
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows.items()))


def _logging_arguments(params: Mapping[str, Any]) -> list[str]:
    """Write logging options as they may have been given."""
    return [
        *(f"--log-level={value}" for value in params["log_level"]),
        *(["--long-log"] if params["long_log"] else ()),
        *(f"--log-file={value}" for value in params["log_file"]),
        *(() if params["log_tty"] else ["--no-log-tty"]),
        *(f"--log-label={value}" for value in params["log_label"]),
    ]


@click.group(
    cls=_Main,
    context_settings=_CONTEXT,
    epilog="Logging options may stand before or after 'run' and 'plan'; for other commands, before.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log what is being done.")
@click.option(
    "--log-level",
    multiple=True,
    metavar="LEVEL|COMPONENT=LEVEL",
    help="The logging level, of everything or of one component.",
)
@click.option("--long-log", is_flag=True, help="Make log messages appear in long format.")
@click.option(
    "--log-file",
    multiple=True,
    metavar="FILE",
    help="File(s) to write log messages to; as JSON records where the name ends with '.json'.",
)
@click.option("--log-tty/--no-log-tty", default=True, help="Whether to log to the terminal.")
@click.option("--log-label", multiple=True, metavar="KEY=VALUE", help="What to add to log records.")
@click.pass_context
def main(ctx: click.Context, /, verbose: bool, **options: Any) -> None:
    """Run Rubin pipelines on Apache Spark, with the Butler's datastore in an object store."""
    if ctx.invoked_subcommand in _RUN_COMMANDS:
        return
    if arguments := _logging_arguments(options):
        from .cli_logging import read_logging_options

        read_logging_options(arguments)
        return
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("spark_butler").setLevel(logging.INFO if verbose else logging.WARNING)


@main.group()
def obs() -> None:
    """Register cameras, ingest their raw frames and calibrations, define visits."""


_instrument = click.option("--instrument", help="Instrument of the files; by default their headers tell.")


def _needs_paths[F: Callable[..., Any]](command: F) -> F:
    return click.argument("paths", nargs=-1, required=True)(command)


@obs.command()
@click.argument("repo")
@click.argument("camera_yaml")
@click.option("--update", is_flag=True, help="Replace the description that the repository has.")
def register_instrument(repo: str, camera_yaml: str, update: bool) -> None:
    """Register the instrument that CAMERA_YAML describes.

    \b
    Example:
      spark-butler obs register-instrument s3-repo conf/cameras/simcam.yaml
    """
    from .obs.register import register_instrument
    from .obs.repository import open_butler

    camera = register_instrument(open_butler(repo), camera_yaml, update=update)
    n = len(camera.detectors)
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
    help="How the files get into the datastore; 'direct' leaves them where they are.",
)
@click.option("--fail-fast", is_flag=True, help="Ingest nothing if any file is bad.")
def ingest_raws(
    repo: str,
    paths: tuple[str, ...],
    instrument: str | None,
    output_run: str | None,
    transfer: str,
    fail_fast: bool,
) -> None:
    """Ingest raw science and calibration frames.

    PATHS are FITS files, directories, globs or URIs.  Files that can't be ingested are listed and the exit
    status is 1; the others are ingested nevertheless.

    \b
    Example:
      spark-butler obs ingest-raws s3-repo night1/ 'night2/*.fits' --transfer copy
    """
    from .obs.raws import ingest_raws
    from .obs.repository import open_butler

    result = ingest_raws(
        open_butler(repo),
        paths,
        instrument=instrument,
        output_run=output_run,
        transfer=transfer,
        fail_fast=fail_fast,
    )
    click.echo(
        f"{len(result.ingested)} files ingested, {len(result.existing)} were there already, "
        f"{len(result.failures)} failed."
    )
    for reason in result.failures.values():
        click.echo(f"Error: {' '.join(reason.split())}", err=True)
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
def ingest_calibs(repo: str, begin_date: str | None, end_date: str | None, **options: Any) -> None:
    """Combine raw calibration frames into masters, and certify them in INSTRUMENT/calib.

    Frames of another kind among PATHS are passed over.  A dark needs the bias to be certified, a flat the
    bias and the dark, if the camera has them.

    \b
    Example:
      spark-butler obs ingest-calibs s3-repo --kind bias raw/
      spark-butler obs ingest-calibs s3-repo --kind dark raw/
      spark-butler obs ingest-calibs s3-repo --kind flat raw/
    """
    from .obs.calibs import ingest_calibs, parse_validity
    from .obs.repository import open_butler

    validity = parse_validity(begin_date, end_date)
    refs = ingest_calibs(open_butler(repo), validity=validity, **options)
    click.echo(f"{len(refs)} {options['kind']} masters certified, in {refs[0].run}.")


@obs.command()
@click.argument("repo")
@click.argument("instrument")
@click.option("--where", default="", help="Expression that narrows the exposures, as in 'pipetask -d'.")
def define_visits(repo: str, instrument: str, where: str) -> None:
    """Define a visit for each science exposure.

    \b
    Example:
      spark-butler obs define-visits s3-repo SimCam --where "exposure.day_obs = 20260101"
    """
    from .obs.repository import open_butler
    from .obs.visits import define_visits

    visits = define_visits(open_butler(repo), instrument, where=where)
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
@click.option("--replace", is_flag=True, help="Replace shards that the collection has.")
def ingest_refcats(repo: str, band_columns: tuple[str, ...], **options: Any) -> None:
    """Ingest a reference catalogue as htm7 shards.

    PATHS are LSST reference catalogue files, or tables with positions in degrees.

    \b
    Examples:
      spark-butler obs ingest-refcats s3-repo --name ps1_pv3 ps1/
      spark-butler obs ingest-refcats s3-repo --name sim_refcat -b r=r_mag,r_mag_err refcat.ecsv
    """
    from .obs.refcats import ingest_refcats, parse_band_columns
    from .obs.repository import open_butler

    bands = [parse_band_columns(text) for text in band_columns]
    refs = ingest_refcats(open_butler(repo), bands=bands, **options)
    click.echo(f"{len(refs)} shards of {options['name']} ingested into {refs[0].run}.")


@main.command()
@click.argument("repo")
@click.option("--run", help="Only what this output RUN has left.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed.")
def cleanup(repo: str, run: str | None, dry_run: bool) -> None:
    """Remove temporaries that crashed runs have left in the object store.

    Runs that end, well or not, clean up after themselves; only what is killed leaves something.
    With --run, parts of its bundle (see run --bundle) that nothing refers to are removed, too.
    Not to be used while a run is going on, unless --run names another.

    \b
    Examples:
      spark-butler cleanup s3-repo --dry-run
      spark-butler cleanup s3-repo --run u/me/first/20260101T000000Z
    """
    from lsst.daf.butler import Butler

    from .bundle import find_unused_parts, remove_unused_parts
    from .repository import check_repository, store_roots
    from .scratch import find_scratch, remove_scratch, scratch_root

    check_repository(repo)
    with Butler.from_config(repo, writeable=False) as butler:
        folders = [scratch_root(root) for root in store_roots(butler)]
        if run is not None:
            folders = [folder.join(f"{run}/", forceDirectory=True) for folder in folders]
        if dry_run:
            parts = [] if run is None else find_unused_parts(butler, run)
            for uri in (*(uri for folder in folders for uri in find_scratch(folder)), *parts):
                click.echo(str(uri))
            return
        n_parts = 0 if run is None else remove_unused_parts(butler, run)
    count = sum(remove_scratch(folder) for folder in folders)
    click.echo(f"{count} scratch files removed.")
    if n_parts:
        click.echo(f"{n_parts} unused parts of a bundle removed.")


@main.group()
def demo() -> None:
    """Make data to try the package on."""


@demo.command()
@click.argument("outdir")
@click.option("--visits", default=3, show_default=True, type=click.IntRange(1))
@click.option("--detectors", default=4, show_default=True, type=click.IntRange(1))
@click.option("--size", default=1024, show_default=True, type=click.IntRange(64), help="Pixels; even.")
@click.option("--seed", default=1, show_default=True)
def simulate(outdir: str, visits: int, detectors: int, size: int, seed: int) -> None:
    """Simulate raw frames, calibration frames and a reference catalogue, with known truth.

    \b
    Example:
      spark-butler demo simulate demo-data --visits 3 --detectors 4 --size 1024 --seed 1
    """
    from .demo.simulation import simulate

    simulated = simulate(outdir, visits=visits, detectors=detectors, size=size, seed=seed)
    click.echo(
        f"{len(simulated.raws)} raw frames are in {simulated.raw_dir}, the truth in {simulated.truth}."
    )


if __name__ == "__main__":
    main()
