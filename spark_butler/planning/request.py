"""Typed request for a run, which the command line and the notebook build.  Runs in the driver."""

from __future__ import annotations

__all__ = ["RunRequest", "build_request", "refuse_action"]

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import astropy.units as u
import pydantic
import yaml
from lsst.ctrl.mpexec.showInfo import ShowInfo
from lsst.pipe.base import ExecutionResources, Pipeline

from ..errors import OptionsError
from ..model.options import ResourceRequests, RunOptions, read_requests
from ..repository.output_checks import check_name
from ..text import brief, explain_invalid

logger = logging.getLogger(__name__)

# Fields whose names differ from the parameters of pipetask.
_PIPETASK_NAMES = {"repo": "butler_config", "graph_file": "qgraph", "where": "data_query", "inputs": "input"}
_OWN = {"options", "show", "provenance_graph", "command", "graph_builder", "take_over", "input_repo"}


class RunRequest(pydantic.BaseModel):
    """A pipeline or a quantum graph to run, its collections, and its options.

    The fields have the names and meanings of the options of ``pipetask run``,
    except ``repo`` (``--butler-config``), ``graph_file`` (``--qgraph``),
    ``where`` (``--data-query``) and ``inputs`` (``--input``).
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    repo: str
    """Address or alias of the repository."""

    input_repo: str | None = None
    """Address or alias of another repository that the inputs are copied from; it is only read."""

    pipeline: str | Pipeline | None = None
    """Address of the pipeline, or a pipeline in memory."""

    pipeline_actions: tuple[Any, ...] = ()
    """Changes to the pipeline, in the order in which they were given."""

    graph_file: str | None = None
    where: str | None = None
    inputs: tuple[str, ...] = ()
    output: str | None = None
    output_run: str | None = None
    extend_run: bool = False
    rebase: bool = False
    replace_run: bool = False
    prune_replaced: str | None = None

    skip_existing: bool = False
    skip_existing_in: tuple[str, ...] = ()
    retained_dataset_types: str | None = None
    clobber_outputs: bool = False

    register_dataset_types: bool = False
    skip_init_writes: bool = False
    no_versions: bool = False
    init_only: bool = False

    graph_fixup: str | None = None
    dataset_query_constraint: str = "all"
    data_id_table: tuple[str, ...] = ()
    prune_unanchored_quanta: Any = None
    qgraph_datastore_records: bool = False
    mock: bool = False
    mock_failure: Mapping[str, Any] = pydantic.Field(default_factory=dict)
    unmocked_dataset_types: tuple[str, ...] = ()

    qgraph_id: str | None = None
    qgraph_node_id: tuple[Any, ...] = ()
    save_pipeline: str | None = None
    select_tasks: str = ""
    save_qgraph: str | None = None
    qgraph_dot: str | None = None
    qgraph_mermaid: str | None = None
    pipeline_dot: str | None = None
    pipeline_mermaid: str | None = None

    graph_builder: Mapping[str, Any] = pydantic.Field(default_factory=dict)
    """Further options of ``pipetask run`` that only pipe_base and ctrl_mpexec read."""

    options: RunOptions = pydantic.Field(default_factory=RunOptions)
    show: ShowInfo = pydantic.Field(default_factory=lambda: ShowInfo([]))
    """Parts of the pipeline and the graph to print."""

    provenance_graph: str | None = None
    """File of the provenance quantum graph to write."""

    take_over: bool = False
    """Whether to take over the output run from a driver that gives no sign of life."""

    command: Sequence[str] = ()
    """The request as a command line; empty if there is none, as for a pipeline in a notebook."""

    @property
    def source_repo(self) -> str:
        """Address or alias of the repository that has the inputs."""
        return self.input_repo or self.repo

    def output_collections(self) -> dict[str, Any]:
        """Return the options that name the output collections, as arguments of `ButlerFactory`."""
        names = ("output", "output_run", "extend_run", "rebase", "replace_run", "prune_replaced")
        return {name: getattr(self, name) for name in names}

    @property
    def brings_graph(self) -> bool:
        """Whether the quantum graph is built without the repository of the outputs."""
        return self.graph_file is not None or self.input_repo is not None

    @classmethod
    def from_pipetask(cls, values: Mapping[str, Any], **own: Any) -> RunRequest:
        """Build a request from values of the options of ``pipetask run``.

        Parameters
        ----------
        values
            Values by parameter name, for the script functions of ctrl_mpexec.
        **own
            Fields that ``pipetask run`` does not have.
        """
        names = {pipetask: field for field, pipetask in _PIPETASK_NAMES.items()}
        fields: dict[str, Any] = {}
        rest: dict[str, Any] = {}
        for name, value in values.items():
            field = names.get(name, name)
            if field not in cls.model_fields:
                rest[name] = value
            elif value is not None:
                fields[field] = value
        return cls(**fields, graph_builder=rest, **own)

    def read_retained(self) -> list[str] | None:
        """Read the patterns of ``--retained-dataset-types``; return `None` without the option."""
        if (file := self.retained_dataset_types) is None:
            return None
        if not (self.skip_existing_in or self.skip_existing):
            raise OptionsError(
                f"--retained-dataset-types {file!r} has no effect without --skip-existing-in; give both or "
                "neither (--store chooses the outputs to store)."
            )
        return _read_patterns("--retained-dataset-types", file)

    def pipetask_arguments(self) -> dict[str, Any]:
        """Return the arguments for the script functions of ctrl_mpexec."""
        fields = {
            _PIPETASK_NAMES.get(name, name): getattr(self, name)
            for name in type(self).model_fields
            if name not in _OWN
        }
        return {**self.graph_builder, **fields}


# Options of the run command that are not fields of RunOptions, or that are converted first.
_ENGINE = frozenset(RunOptions.model_fields) - {"skip_existing", "clobber_outputs"}
_IGNORED_WITH_GRAPH = ("data_query", "data_id_table", "qgraph_datastore_records", "prune_unanchored_quanta")


_ACTION = re.compile(r"syntax for option '(\w+)': (.*) \(does not match")
_ACTIONS = {"config": "config LABEL:NAME=VALUE", "configfile": "config-file LABEL:FILE"}


def refuse_action(error: Exception) -> OptionsError:
    """Return the error about a change to the pipeline that can't be read."""
    text = brief(error)
    if (found := _ACTION.search(text)) is not None:
        option, form = _ACTIONS.get(found[1], "task TASK[:LABEL]").split()
        text = f"--{option} is {found[2]}; expected {form}."
    return OptionsError(text)


def build_request(
    values: Mapping[str, Any],
    *,
    show: ShowInfo | None = None,
    command: Sequence[str] = (),
    default_pipeline: Path | None = None,
) -> RunRequest:
    """Build a request from the options of ``spark-butler run``, and check their combination.

    Parameters
    ----------
    values
        Values by parameter name of the command; absent ones have their defaults.  ``pipeline_actions`` holds
        the changes to the pipeline.
    command
        The command line, without secrets.
    """
    values = dict(values)
    _check_sources(values, default_pipeline, shows=bool(show and show.commands))
    provenance_graph = values.pop("provenance_graph", None)
    if values.get("extend_run"):
        values["skip_existing"] = True
    for name in ("output", "output_run"):
        if values.get(name):
            check_name(_as_option(name).strip(), values[name])
    options = _read_options(values)
    own = {} if show is None else {"show": show}
    try:
        request = RunRequest.from_pipetask(
            values, options=options, provenance_graph=provenance_graph, command=command, **own
        )
    except pydantic.ValidationError as exc:
        text = explain_invalid(exc, known=RunRequest.model_fields, depth=1)
        raise OptionsError(_as_option(text)) from exc
    if request.graph_file is None:
        # The file is read again when the graph is built; reading it here reports a bad file early.
        request.read_retained()
    return request


def _as_option(text: str) -> str:
    """Return an error text with the option instead of the field's name at its beginning."""
    name, _, rest = text.partition(" ")
    return f"--{name.replace('_', '-')} {rest}"


def _check_sources(values: dict[str, Any], default_pipeline: Path | None, *, shows: bool) -> None:
    """Check the source of the graph, and fill in the default pipeline."""
    actions = sorted({action.action for action in values.get("pipeline_actions") or ()})
    pipeline = values.get("pipeline")
    if (file := values.get("qgraph")) is not None:
        if pipeline is not None or actions:
            given = ", ".join([*(["--pipeline"] if pipeline else []), *actions])
            raise OptionsError(
                f"--qgraph {file!r} holds a pipeline and can't be combined with one ({given}); "
                "give either --qgraph or pipeline options."
            )
        for name in _IGNORED_WITH_GRAPH:
            if values.get(name):
                logger.warning("--%s has no effect on a graph from a file.", name.replace("_", "-"))
        return
    if pipeline is None and "new_task" not in actions:
        if default_pipeline is None:
            raise OptionsError("None of --pipeline, --task and --qgraph was given.")
        values["pipeline"] = str(default_pipeline)
    if not (values.get("output") or values.get("output_run") or shows):
        raise OptionsError("Neither --output nor --output-run was given; outputs need a collection.")


def _read_options(values: dict[str, Any]) -> RunOptions:
    """Remove the options of the engine from those of the command, and validate them."""
    options = {name: values.pop(name) for name in _ENGINE if name in values}
    if (file := options.get("resources")) is not None and not isinstance(file, ResourceRequests):
        options["resources"] = read_requests(file)
    if options.get("group_by") == "quantum":
        # `RunOptions` accepts the value, but only for the engine's own use.
        raise OptionsError("--group-by is 'quantum': expected auto, fused, or names of dimensions")
    options["store"] = _read_stored(options.get("store") or ())
    options["memory_per_quantum"] = options.get("memory_per_quantum") or ""
    options = {name: value for name, value in options.items() if value is not None}
    memory = options["memory_per_quantum"]
    try:
        cores = options.get("cores_per_quantum", 1)
        ExecutionResources(num_cores=cores, max_mem=memory, default_mem_units=u.MB)
    except (ValueError, TypeError) as exc:
        raise OptionsError(f"--memory-per-quantum {memory!r}: {brief(exc)}") from exc
    try:
        return RunOptions(
            **options,
            skip_existing=bool(values.get("skip_existing")),
            # As in pipetask, there is nothing to clobber in a new run.
            clobber_outputs=bool(values.get("clobber_outputs") and values.get("extend_run")),
        )
    except OptionsError as exc:
        raise OptionsError(_as_option(str(exc))) from exc


def _read_stored(values: Sequence[str]) -> tuple[str, ...] | None:
    """Read the patterns of ``--store``: patterns, or YAML files with lists of patterns."""
    patterns: list[str] = []
    for value in values:
        patterns.extend(_read_patterns("--store", value) if Path(value).is_file() else [value])
    return tuple(patterns) or None


def _read_patterns(option: str, file: str) -> list[str]:
    """Read a YAML file with a list of patterns."""
    try:
        content = yaml.safe_load(Path(file).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise OptionsError(f"{option} file {file!r} can't be read: {brief(exc)}") from exc
    if not isinstance(content, list) or not content or not all(isinstance(item, str) for item in content):
        raise OptionsError(f"{option} file {file!r} must contain a non-empty YAML sequence of strings.")
    return content
