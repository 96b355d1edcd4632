"""The command ``doctor``, which checks what runs need here and in workers.  Runs in the command's process."""

from __future__ import annotations

__all__ = ["doctor"]

import dataclasses
from typing import TYPE_CHECKING

import click

from ..errors import UserError
from .command import LeafCommand, print_json
from .exit_status import FAILED, SUCCEEDED

if TYPE_CHECKING:
    from ..repository.store_checks import Finding


@click.command(cls=LeafCommand)
@click.option("-b", "--butler-config", "repo", required=True, help="Address or alias of the repository.")
@click.option(
    "--spark/--no-spark", default=True, show_default=True, help="Whether to check workers of Spark."
)
@click.pass_context
def doctor(ctx: click.Context, repo: str, spark: bool, form: str) -> None:
    """Check repository, object store, registry, machine and workers before a run.

    Small objects are written to the object store and removed again.  The exit status is 1 if a run would
    fail.

    \b
    Examples:
      spark-butler doctor -b s3-repo
      spark-butler doctor -b s3-repo --no-spark --format json
    """
    from ..repository.doctor_checks import diagnose_machine, diagnose_repository

    found, roots = diagnose_repository(repo, "driver")
    found += diagnose_machine("driver")
    if spark:
        found += _diagnose_spark([str(root) for root in roots])
    n_faults = sum(each.state == "fault" for each in found)
    if form == "json":
        print_json([dataclasses.asdict(each) for each in found])
    else:
        for each in found:
            click.echo(f"{each.state:8}{each.where}: {each.check}{f': {each.text}' if each.text else ''}")
            if each.remedy and each.state != "ok":
                click.echo(f"{'':8}{each.remedy}")
        click.echo(f"{n_faults} of {len(found)} checks found a fault.")
    ctx.exit(FAILED if n_faults else SUCCEEDED)


def _diagnose_spark(stores: list[str]) -> list[Finding]:
    """Start Spark, and check its workers."""
    from ..repository.store_checks import Finding
    from ..spark.preflight import diagnose_workers
    from ..spark.session import make_spark_context, spark_is_up

    was_up = spark_is_up()
    try:
        context = make_spark_context()
    except UserError as exc:
        return [
            Finding("driver", "Spark", "fault", str(exc), "Check Java, PySpark and the master's address.")
        ]
    try:
        return [Finding("driver", "Spark", "ok", context.version), *diagnose_workers(context, stores)]
    finally:
        if not was_up:
            context.stop()
