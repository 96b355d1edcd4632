"""What the options of the run command mean, and which make no sense."""

from __future__ import annotations

__all__ = ["make_request"]

import importlib.util
import logging
from pathlib import Path
from typing import Any

import astropy.units as u
import click
from lsst.ctrl.mpexec.cli.utils import collect_pipeline_actions
from lsst.ctrl.mpexec.showInfo import ShowInfo
from lsst.pipe.base import ExecutionResources

from ..errors import OptionsError
from ..model.limits import ResourceRequests, read_requests
from ..model.options import RunOptions
from ..planning.dataset_ids import read_patterns, read_retained
from ..planning.graph import RunRequest
from ..provenance.graph_files import check_destination
from ..text import brief

logger = logging.getLogger(__name__)

_TAKEN_AS_GIVEN = (
    *("temporary", "group_by", "max_shuffle_bytes", "processes", "timeout", "retries", "isolation"),
    *("fail_fast", "max_failures", "max_same_failures", "raise_on_partial_outputs"),
    *("cores_per_quantum", "debug"),
)

_IGNORED_WITH_GRAPH = ("data_query", "data_id_table", "qgraph_datastore_records", "prune_unanchored_quanta")


def make_request(
    ctx: click.Context, kwargs: dict[str, Any], *, default_pipeline: Path | None = None, on_spark: bool = True
) -> RunRequest:
    """Make a request of the options of the command.

    Parameters
    ----------
    ctx
        Context of the command, which knows the order of pipeline options.
    kwargs
        Values of the options, by parameter name.
    default_pipeline
        Pipeline to run when none is given.
    on_spark
        Whether quanta are to run on Spark.

    Raises
    ------
    spark_butler.errors.OptionsError
        Raised if options, or combinations of them, have no meaning.
    """
    try:
        kwargs = collect_pipeline_actions(ctx, **kwargs)
        show = ShowInfo(kwargs["show"] or [])
    except (TypeError, ValueError) as exc:
        raise OptionsError(brief(exc)) from exc
    _check_sources(kwargs, default_pipeline)
    _check_meaning(kwargs, on_spark=on_spark)
    del kwargs["show"]
    provenance_graph = kwargs.pop("provenance_graph")
    if provenance_graph is not None:
        check_destination(provenance_graph)
    options = _take_options(kwargs)
    if kwargs["qgraph"] is None:
        # It is read again where the graph is built; a file that can't be used is refused here.
        read_retained(kwargs)
    return RunRequest(kwargs, options, show, provenance_graph)


def _check_sources(kwargs: dict[str, Any], default_pipeline: Path | None) -> None:
    """Look where the graph is to come from, and fill in the default."""
    actions = sorted({action.action for action in kwargs["pipeline_actions"]})
    if (file := kwargs["qgraph"]) is not None:
        if kwargs["pipeline"] is not None or actions:
            given = ", ".join([*(["--pipeline"] if kwargs["pipeline"] else []), *actions])
            raise OptionsError(
                f"--qgraph {file!r} holds a pipeline and can't be combined with one ({given}); "
                "give either --qgraph or pipeline options."
            )
        for name in _IGNORED_WITH_GRAPH:
            if kwargs[name]:
                logger.warning("--%s has no effect on a graph from a file.", name.replace("_", "-"))
    elif kwargs["pipeline"] is None and "new_task" not in actions:
        if default_pipeline is None:
            raise OptionsError("None of --pipeline, --task and --qgraph was given.")
        kwargs["pipeline"] = str(default_pipeline)
    if kwargs["qgraph"] is None and not (kwargs["output"] or kwargs["output_run"] or kwargs["show"]):
        raise OptionsError("Neither --output nor --output-run was given; outputs need a collection.")


def _check_meaning(kwargs: dict[str, Any], *, on_spark: bool) -> None:
    """Refuse options of ``pipetask run`` that mean nothing here."""
    if kwargs["pdb"]:
        raise OptionsError("--pdb needs quanta in the process of a terminal; use `pipetask run --pdb -j 1`.")
    if kwargs["start_method"]:
        raise OptionsError(
            f"--start-method {kwargs['start_method']} has no meaning: quanta run in processes forked from "
            "workers of Spark."
        )
    if kwargs["coverage"] and importlib.util.find_spec("coverage") is None:
        raise OptionsError("--coverage needs the package `coverage`, which is not installed.")
    if not on_spark:
        return
    for name in ("profile", "coverage"):
        if kwargs[name]:
            raise OptionsError(
                f"--{name} sees this process only, and quanta run in workers of Spark; "
                "give --backend serial with it."
            )


def _take_options(kwargs: dict[str, Any]) -> RunOptions:
    """Take the options of the engine from those of the command."""
    if kwargs["extend_run"]:
        kwargs["skip_existing"] = True
    try:
        ExecutionResources(
            num_cores=kwargs["cores_per_quantum"],
            max_mem=kwargs["memory_per_quantum"],
            default_mem_units=u.MB,
        )
    except (ValueError, TypeError) as exc:
        raise OptionsError(f"--memory-per-quantum {kwargs['memory_per_quantum']!r}: {brief(exc)}") from exc
    options: dict[str, Any] = {name: kwargs.pop(name) for name in _TAKEN_AS_GIVEN}
    options.update(
        store=_read_stored(kwargs.pop("store")),
        resources=_read_resources(kwargs.pop("resources")),
        skip_existing=kwargs["skip_existing"],
        # As in pipetask, there is nothing to clobber in a new run.
        clobber_outputs=kwargs["clobber_outputs"] and kwargs["extend_run"],
        memory_per_quantum=kwargs.pop("memory_per_quantum") or "",
    )
    try:
        return RunOptions(**options)
    except OptionsError as exc:
        name, rest = str(exc).split(" ", 1)
        raise OptionsError(f"--{name.replace('_', '-')} {rest}") from exc


def _read_resources(file: str | None) -> ResourceRequests:
    """Read what is asked for tasks."""
    return ResourceRequests() if file is None else read_requests(file)


def _read_stored(values: tuple[str, ...]) -> tuple[str, ...] | None:
    """Read the patterns of dataset types to store."""
    if not values:
        return None
    patterns: list[str] = []
    for value in values:
        if not Path(value).is_file():
            patterns.append(value)
            continue
        patterns.extend(read_patterns("--store", value))
    return tuple(patterns)
