"""The command ``submit``, which starts a run without the terminal.  Runs in the command's process."""

from __future__ import annotations

__all__ = ["submit"]

import datetime
import shlex
import sys
from pathlib import Path

import click

from ..detached.job import DetachedJob, Step, find_program
from ..errors import OptionsError
from .command import LeafCommand, print_result
from .exit_status import FAILED

_COMMANDS = ("run", "run-qbb")


@click.command(
    cls=LeafCommand, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.option("--submit-dir", metavar="DIR", help="Folder to create for the job; by default submit/TIME.")
@click.option(
    "--spark-submit",
    "spark_submit",
    metavar="OPTIONS",
    help="Start the driver by spark-submit with these options, such as '--master yarn'.",
)
@click.option(
    "--wait",
    default=15.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds to wait for a refusal before the command returns.",
)
@click.argument("command", type=click.Choice(_COMMANDS))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def submit(
    submit_dir: str | None,
    spark_submit: str | None,
    wait: float,
    command: str,
    arguments: tuple[str, ...],
    form: str,
) -> None:
    """Start COMMAND with ARGUMENTS; it continues when the terminal is closed.

    COMMAND is run or run-qbb.  If it is refused at once, its error is printed and its exit status returned.

    \b
    Examples:
      spark-butler submit run -b s3-repo -p pipeline.yaml -i SimCam/defaults -o u/me/first
      spark-butler submit --submit-dir night run -@ night.yaml
      spark-butler submit --spark-submit "--master yarn --deploy-mode cluster" run-qbb s3-repo night.qg
    """
    now = f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}"
    folder = Path(submit_dir or Path("submit", now))
    try:
        options = None if spark_submit is None else shlex.split(spark_submit)
    except ValueError as exc:
        raise OptionsError(f"--spark-submit {spark_submit!r} can't be split into options: {exc}.") from exc
    call = [*find_program(options, "--spark-submit needs"), command, *arguments]
    job = DetachedJob.create(folder, [Step(command, tuple(call))], {"command": call})
    pid = job.start()
    state = job.wait(wait)
    log = job.log_file(command)
    if state.state not in ("running", "succeeded"):
        click.echo(log.read_text(errors="replace").rstrip(), err=True)
        sys.exit(state.steps.get(command, {}).get("exit_status") or FAILED)
    submitted = {"folder": str(job.folder), "pid": pid, "log": str(log), "state": state.state}
    print_result(form, submitted, f"Submitted as process {pid}; its log is {log}.")
