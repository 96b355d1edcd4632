"""Entry point of the ``spark-butler`` command.  Runs in the process of the command."""

from __future__ import annotations

__all__ = ("main", "program")

import atexit
import gc
import importlib
import importlib.metadata
import platform
from typing import Any

import click

from ..spark.startup import SparkStart
from .cleanup import cleanup
from .command import CONTEXT, CommandGroup, keep_logging_arguments, logging_options, print_result
from .demo import run_demo, serve_demo
from .doctor import doctor
from .obs import obs

# Module of each command that needs the middleware, and its help.
_LAZY = {
    "cancel": ("status_and_logs", "Ask a run to stop."),
    "catalog": ("products", "Write the sources of a run as one table."),
    "plan": ("run", "Print how a pipeline would run, with the options of 'run'."),
    "pre-exec-init-qbb": ("qbb", "Write the init-outputs of a quantum graph without the registry."),
    "logs": ("status_and_logs", "Print the log of an ended or a running quantum."),
    "report": ("status_and_logs", "Print the report of a run that has ended."),
    "run": ("run", "Build and run a pipeline on Spark, with the options of 'pipetask run'."),
    "run-qbb": ("qbb", "Run a quantum graph on Spark without the registry."),
    "science": ("products", "Write a page about images, PSF, astrometry and photometry of a run."),
    "show": ("products", "Draw a visit, or a detector with its sources."),
    "submit": ("submit", "Start a run that goes on without the terminal."),
    "status": ("status_and_logs", "Print the state of running and ended runs."),
}
_ON_SPARK = ("run", "run-qbb")

_EPILOG = """Give logging options before or after the name of a command.  A YAML file may hold options
below the name of the command: -@ FILE.

\b
Examples:
  spark-butler plan -b s3-repo -p pipeline.yaml -i SimCam/defaults -o u/me/first -d "visit = 42"
  spark-butler run -b s3-repo -p pipeline.yaml -i SimCam/defaults -o u/me/first -d "visit = 42"
  spark-butler status s3-repo u/me/first
  spark-butler --log-level DEBUG cleanup s3-repo --dry-run
"""


class _Main(CommandGroup):
    """The top group, which imports a command that needs the middleware only when it is called."""

    group_class = CommandGroup

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_LAZY})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _LAZY:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"{__package__}.{_LAZY[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in _ON_SPARK and not ctx.resilient_parsing:
            # Spark starts while the middleware is imported.
            ctx.obj = SparkStart()
            ctx.call_on_close(ctx.obj.close)
            ctx.obj.launch(args)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = {name: text for name, (_, text) in _LAZY.items()}
        rows.update((name, each.get_short_help_str(80)) for name, each in self.commands.items())
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows.items()))


def _print_versions(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print the versions of this package and of its foundations, without importing them."""
    if not value or ctx.resilient_parsing:
        return
    for name in ("spark-butler", "PySpark", "lsst-pipe-base"):
        try:
            click.echo(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            click.echo(f"{name} is not installed as a package")
    click.echo(f"Python {platform.python_version()}")
    ctx.exit()


@click.group(cls=_Main, context_settings=CONTEXT, epilog=_EPILOG)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_versions,
    help="Print versions.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log each step.")
@logging_options
@click.pass_context
def main(ctx: click.Context, /, verbose: bool, **options: Any) -> None:
    """Run Rubin pipelines on Apache Spark, with the Butler's datastore in an object store."""
    keep_logging_arguments(ctx, options, verbose=verbose)


main.add_command(obs)
main.add_command(cleanup)
main.add_command(doctor)


@main.group(
    epilog="""\b
Example:
  spark-butler demo simulate demo-data --visits 3 --detectors 4
"""
)
def demo() -> None:
    """Build data to try the package."""


@demo.command()
@click.argument("outdir")
@click.option("--visits", default=3, show_default=True, type=click.IntRange(1))
@click.option("--detectors", default=4, show_default=True, type=click.IntRange(1))
@click.option("--size", default=1024, show_default=True, type=click.IntRange(64), help="Pixels; even.")
@click.option("--seed", default=1, show_default=True)
@click.option(
    "--scene",
    metavar="NAME",
    help="Fault or difficult sky to simulate, such as 'vignetted' or 'crowded'; an unknown name lists all.",
)
def simulate(
    outdir: str, visits: int, detectors: int, size: int, seed: int, scene: str | None, form: str
) -> None:
    """Simulate raw frames, calibration frames and a reference catalog, with known truth.

    \b
    Example:
      spark-butler demo simulate demo-data --visits 3 --detectors 4 --size 1024 --seed 1
    """
    from ..demo.simulation import SCENES, simulate
    from ..errors import OptionsError
    from ..text import suggest

    if scene is not None and scene not in SCENES:
        raise OptionsError(f"--scene {scene!r} is not a known scene; {suggest(scene, SCENES)}")
    simulated = simulate(outdir, visits=visits, detectors=detectors, size=size, seed=seed, scene=scene)
    n_raws, files = len(simulated.raws), ("raw_dir", "truth", "camera", "refcat")
    print_result(
        form,
        {"raws": n_raws, **{name: getattr(simulated, name) for name in files}},
        f"{n_raws} raw frames are in {simulated.raw_dir}, the truth in {simulated.truth}.",
    )


demo.add_command(run_demo)
demo.add_command(serve_demo)


def program() -> None:
    """Run the command that the arguments of this process name."""
    # Otherwise the interpreter collects garbage in all imported modules at exit, for half a second.
    atexit.register(gc.freeze)
    main()
