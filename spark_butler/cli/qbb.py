"""The commands ``run-qbb`` and ``pre-exec-init-qbb``.  Run in the driver; it opens no registry."""

from __future__ import annotations

__all__ = ["pre_exec_init_qbb", "run_qbb"]

import copy
from typing import Any

import click
from lsst.ctrl.mpexec.cli import script
from lsst.ctrl.mpexec.cli.cmd import commands as stock
from lsst.daf.butler.cli.opt import options_file_option

from ..errors import UserError
from ..graph_run import open_graph_run, prepare_graph_run
from ..planning.request import build_request
from ..spark.startup import SparkStart
from ..text import translate_errors
from .command import CONTEXT, LeafCommand, format_option, start_logging, stock_logging_options
from .execute import Manner, carry_out
from .exit_status import exit_with
from .run import RunCommand, adapt_options, command_line
from .run_options import backend_options, check_meaning, engine_options

_EPILOG = """\b
Examples:
  spark-butler pre-exec-init-qbb s3-repo night.qg
  spark-butler run-qbb s3-repo night.qg --provenance-graph provenance.qg
  butler aggregate-graph night.qg s3-repo --complete
  butler ingest-graph s3-repo provenance.qg

Exit status: as that of 'spark-butler run'.
"""


@click.command("run-qbb", cls=RunCommand, epilog=_EPILOG, context_settings=CONTEXT)
@engine_options
@backend_options
@format_option
@stock_logging_options
@click.pass_context
def run_qbb(ctx: click.Context, /, repo: str, qgraph: str, no_existing_outputs: bool, **kwargs: Any) -> None:
    """Run a quantum graph on Spark without the registry.

    REPO is the repository and QGRAPH a graph that was built with --qgraph-datastore-records.  The outputs are
    left in the datastore; `butler aggregate-graph` registers them.  `butler ingest-graph` packs the metadata
    and logs into the file of --provenance-graph.  Quanta that have succeeded before are not run again.
    """

    def run() -> int:
        start_logging(kwargs)
        manner = Manner.take(kwargs)
        check_meaning(kwargs, on_spark=manner.on_spark)
        options = {"skip_existing": not no_existing_outputs, "extend_run": not no_existing_outputs}
        request = build_request(
            {**kwargs, **options, "butler_config": repo, "qgraph": qgraph, "clobber_outputs": True},
            command=command_line(ctx),
        )
        spark = ctx.ensure_object(SparkStart)
        return carry_out(request, manner, spark, prepare=prepare_graph_run, open_run=open_graph_run)

    exit_with(ctx, run)


run_qbb.params = [*copy.deepcopy(stock.run_qbb.params), *run_qbb.params]
adapt_options(run_qbb)
options_file_option()(run_qbb)


@click.command(cls=LeafCommand)
@click.argument("repo")
@click.argument("qgraph")
@click.option("--config-search-path", multiple=True, metavar="PATH", help="Further path of configurations.")
@click.option("--qgraph-id", help="Identifier that a graph with the extension .qgraph must have.")
def pre_exec_init_qbb(form: str, **kwargs: Any) -> None:
    """Write the init-outputs of a quantum graph without the registry.

    \b
    Example:
      spark-butler pre-exec-init-qbb s3-repo night.qg
    """
    with translate_errors(UserError, "The init-outputs can't be written"):
        script.pre_exec_init_qbb(butler_config=kwargs.pop("repo"), **kwargs)
    if form == "text":
        click.echo("The init-outputs are written.", err=True)
