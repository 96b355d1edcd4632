"""Arguments of `SparkButler.run`: documentation, and conversion to a request.  Runs in the driver."""

from __future__ import annotations

__all__ = ["RunArguments", "in_words_of_python", "make_notebook_request", "with_run_arguments"]

import inspect
import os
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict

import astropy.units as u
import pydantic
from lsst.ctrl.mpexec.cli.utils import make_pipeline_actions
from lsst.pipe.base import ExecutionResources, Pipeline, PipelineTask
from lsst.utils.introspection import get_full_type_name

from .._pipe_base import default_label
from ..errors import OptionsError
from ..model.options import MIB, ResourceRequests, RunOptions, explain_requests
from ..planning.request import RunRequest, build_request, refuse_action
from ..report import clean_command
from ..repository.checks import check_repository
from ..text import brief, suggest

type Names = str | Sequence[str]
type Address = str | os.PathLike[str]


class RunArguments(TypedDict, total=False):
    """Names, types and meanings of the arguments."""

    input: Annotated[Names, "Input collections; by default those of the butler."]
    input_repo: Annotated[str, "Repository, or Butler server, that inputs are copied from; it is only read."]
    output: Annotated[str, "CHAINED collection of the outputs; each run adds a RUN collection to it."]
    output_run: Annotated[str, "RUN collection of the outputs; by default the output and a time stamp."]
    where: Annotated[str, "Data query, as ``-d`` of the command."]
    data_id_table: Annotated[Names, "Files with tables of data IDs, which narrow the query."]
    temporary: Annotated[Names, "Patterns of dataset types that are not stored, or ``'auto'``."]
    store: Annotated[Names, "Patterns of the only dataset types that are stored, or a YAML file of them."]
    config: Annotated[
        Mapping[str, Any], "Values of configuration fields, such as ``{'isr:do_dark': False}``."
    ]
    config_file: Annotated[Mapping[str, Address], "Files of configuration overrides by label."]
    task: Annotated[Names, "Tasks to add: ``MODULE.CLASS`` or ``MODULE.CLASS:LABEL``."]
    delete: Annotated[Names, "Labels of tasks to remove."]
    select_tasks: Annotated[str, "Expression that selects tasks, such as ``'>=isr'``."]
    instrument: Annotated[Names, "Classes of instruments whose configuration overrides apply."]
    extend_run: Annotated[bool, "Whether to add to an existing RUN collection."]
    skip_existing: Annotated[bool, "Whether to skip quanta that have succeeded in the output run."]
    skip_existing_in: Annotated[Names, "Collections whose quanta are skipped."]
    retained_dataset_types: Annotated[Address, "File of dataset types that a skipped quantum must have left."]
    clobber_outputs: Annotated[bool, "Whether to replace outputs of failed attempts."]
    replace_run: Annotated[bool, "Whether to remove the newest RUN from the output chain."]
    prune_replaced: Annotated[Literal["unstore", "purge"], "Part of the replaced RUN to delete."]
    rebase: Annotated[bool, "Whether to rebuild the output chain from the inputs."]
    register_dataset_types: Annotated[bool, "Whether to register dataset types of outputs."]
    memory: Annotated[int | str, "Memory that each task may have, such as ``'4GB'``."]
    timeout: Annotated[float, "Seconds after which a quantum is ended."]
    retries: Annotated[int, "Number of retries after transient failures; by default 2."]
    resources: Annotated[
        Address | Mapping[str, Any], "Memory, time and retries by task, as ``--resources`` of the command."
    ]
    group_by: Annotated[Names, "``'auto'``, ``'fused'``, or dimensions whose quanta share a group."]
    isolation: Annotated[Literal["group", "quantum", "none"], "The unit that runs in its own process."]
    processes: Annotated[int, "Greatest number of quanta to run at once; by default Spark's slots."]
    fail_fast: Annotated[bool, "Whether to stop at the first failure."]
    max_failures: Annotated[str, "Number or percentage of failures that stop the run."]
    max_same_failures: Annotated[int, "Number of failures of a task with one message that stop the run."]
    raise_on_partial_outputs: Annotated[bool, "Whether partial outputs are a failure."]
    cores_per_quantum: Annotated[int, "Number of cores that a task may use."]
    memory_per_quantum: Annotated[str, "Memory that a task may use."]
    take_over: Annotated[bool, "Whether to take over the output run from a driver that seems dead."]
    no_versions: Annotated[bool, "Whether to store no versions of packages."]
    skip_init_writes: Annotated[bool, "Whether to store no configurations and schemas."]
    graph_fixup: Annotated[str, "Class that adds an order between quanta."]
    dataset_query_constraint: Annotated[str, "Dataset types whose existence narrows the query."]
    prune_unanchored_quanta: Annotated[tuple[str, str], "Labels of a source and its anchor."]
    provenance_graph: Annotated[Address, "File for the provenance quantum graph."]
    qgraph: Annotated[Address, "File of a quantum graph to run, instead of a pipeline."]
    qgraph_id: Annotated[str, "Identifier that this graph must have."]
    qgraph_node_id: Annotated[Names, "Quanta of this graph to run."]
    qgraph_datastore_records: Annotated[bool, "Whether a saved graph has datastore records."]
    save_qgraph: Annotated[Address, "File to save the quantum graph to."]
    save_pipeline: Annotated[Address, "File to save the pipeline to."]
    pipeline_dot: Annotated[Address, "File for a picture of the pipeline, for Graphviz."]
    pipeline_mermaid: Annotated[Address, "The same for Mermaid."]
    qgraph_dot: Annotated[Address, "File for a picture of the quantum graph, for Graphviz."]
    qgraph_mermaid: Annotated[Address, "The same for Mermaid."]
    mock: Annotated[bool, "Whether to run mocks of the tasks."]
    mock_failure: Annotated[Mapping[str, Any], "Tasks whose mocks fail."]
    unmocked_dataset_types: Annotated[Names, "Inputs that are not mocked."]


def _find_default(name: str) -> Any:
    """Return the value that an argument has unless it is given."""
    for model in (RunOptions, RunRequest):
        if (field := model.model_fields.get(name)) is not None and not field.is_required():
            value = field.get_default()
            return None if value in ((), "") or not isinstance(value, bool | int | str) else value
    return None


DEFAULTS: Mapping[str, Any] = {
    **{name: _find_default(name) for name in RunArguments.__annotations__},
    "register_dataset_types": True,
}
"""Values of arguments that are not given."""


def with_run_arguments[F: Callable[..., Any]](method: F) -> F:
    """Give a method whose ``**options`` are `RunArguments` a signature and a documentation that list them."""
    hints = typing.get_type_hints(RunArguments, include_extras=True)
    signature = inspect.signature(method)
    kept = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    lines = ["Other Parameters", "----------------"]
    for name, hint in hints.items():
        annotation, text = typing.get_args(hint)
        keyword = inspect.Parameter.KEYWORD_ONLY
        kept.append(inspect.Parameter(name, keyword, default=DEFAULTS[name], annotation=annotation))
        lines += [name, f"    {text}"]
    head, heading, rest = inspect.cleandoc(method.__doc__ or "").partition("Returns\n-------\n")
    method.__doc__ = head + "\n".join([*lines, "", heading]) + rest
    method.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return method


_OTHER_NAMES = {"where": "data_query"}
_ELSEWHERE = {
    "backend": "a notebook runs on Spark",
    "butler_config": "the SparkButler has its repository",
    "price": "use the command `plan` or `report`",
    "pdb": "use `pipetask run --pdb`",
    "progress": "a run shows its own table",
    "start_method": "quanta run in processes forked from workers of Spark",
    **dict.fromkeys(["dry_run", "show"], "use SparkButler.plan()"),
    **dict.fromkeys(["form", "summary"], "use Run.report()"),
    **dict.fromkeys(["metrics_port", "metrics_file", "init_only", "debug"], "use the command"),
    "enable_implicit_threading": "use the command",
    **dict.fromkeys(
        ["profile", "coverage", "cov_report", "cov_packages"], "use the command with --backend serial"
    ),
    **dict.fromkeys(
        ["log_level", "long_log", "log_file", "log_tty", "log_label", "log_json"],
        "use the logging of the notebook",
    ),
}
_ACTIONS = ("task", "delete", "config", "config_file", "instrument")
_WITH_COMMAS = ("input", "skip_existing_in", "unmocked_dataset_types", "qgraph_node_id", "task", "delete")
_REPEATED = (*_WITH_COMMAS[:4], "data_id_table", "temporary", "store")
_FLAGS = {name for name, value in DEFAULTS.items() if isinstance(value, bool)}
_PIPELINES = "the address of a pipeline file, a Pipeline or the class of a PipelineTask"
_OTHER_NAMES_BACK = {option: name for name, option in _OTHER_NAMES.items()}
# Text that is written as a command is not changed.
_FLAG = re.compile(r"(?P<command>`[^`]*`)|(?<![\w-])--(?P<option>[a-z][a-z-]*[a-z])")

type PipelineLike = str | os.PathLike[str] | Pipeline | type[PipelineTask]


def make_notebook_request(repo: str, pipeline: PipelineLike | None, options: Mapping[str, Any]) -> RunRequest:
    """Build a request from the arguments of `SparkButler.run`; dataset types are registered by default.

    The pipeline is `None` where the options name tasks or a quantum graph.  Options have the
    names of those of ``spark-butler run``, with underscores; ``where`` stands for ``data_query``,
    ``memory`` for the memory that each task may have.  Flags are booleans, options that may be
    repeated take lists, ``config`` takes a mapping.
    """
    given = {_OTHER_NAMES.get(name, name): value for name, value in options.items() if value is not None}
    for name in given:
        if name in _ELSEWHERE:
            raise OptionsError(f"{name} has no meaning in a notebook: {_ELSEWHERE[name]}.")
        if name not in DEFAULTS and name not in ("data_query", "pipeline"):
            raise OptionsError(f"{name!r} is not a known option; {suggest(name, DEFAULTS)}")
    memory, requests = given.pop("memory", None), given.pop("resources", None)
    given.setdefault("register_dataset_types", True)
    is_of_cell = isinstance(pipeline, type) and pipeline.__module__ == "__main__"
    in_memory = isinstance(pipeline, Pipeline) or is_of_cell or isinstance(requests, Mapping)
    values: dict[str, Any] = {}
    if isinstance(pipeline, Pipeline):
        # Options may change the pipeline.
        values["pipeline"] = Pipeline.fromPipeline(pipeline)
    else:
        # First, since the other changes to the pipeline may be about the task.
        given = {**_name_pipeline(pipeline, given), **given}
    if requests is not None and not isinstance(requests, Mapping):
        given["resources"] = str(requests)
    arguments = ["--butler-config", repo, *_write_arguments(given)]
    actions = [each for argument in arguments for each in argument.split("=", 1)]
    try:
        values["pipeline_actions"] = make_pipeline_actions(actions)
    except TypeError as exc:
        raise refuse_action(exc) from exc
    values |= {name: _convert(name, value) for name, value in given.items() if name not in _ACTIONS}
    check_repository(repo)
    command = clean_command(["spark-butler", "run", *arguments]) if not (in_memory or memory) else ()
    request = build_request({"butler_config": repo, **values}, command=command)
    return _with_resources(request, requests if isinstance(requests, Mapping) else None, memory)


def in_words_of_python(text: str) -> str:
    """Return the text of an error of the command with options named as arguments of a call in Python."""

    def name(match: re.Match[str]) -> str:
        if match["command"]:
            return match[0]
        option = match["option"].replace("-", "_")
        return _OTHER_NAMES_BACK.get(option, option)

    return _FLAG.sub(name, text)


def _name_pipeline(pipeline: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that name a pipeline."""
    if pipeline is None:
        if not any(given.get(name) for name in ("pipeline", "task", "qgraph")):
            raise OptionsError(f"No pipeline was given; expected {_PIPELINES}, or task= or qgraph=.")
        return {}
    if isinstance(pipeline, type) and issubclass(pipeline, PipelineTask):
        return {"task": f"{get_full_type_name(pipeline)}:{default_label(pipeline)}"}
    if isinstance(pipeline, str | os.PathLike):
        return {"pipeline": os.fspath(pipeline)}
    raise OptionsError(f"pipeline is {pipeline!r}; expected {_PIPELINES}.")


def _convert(name: str, value: Any) -> Any:
    """Return the value of an option in the form that the command line passes to a request."""
    if name in _FLAGS and not isinstance(value, bool):
        raise OptionsError(f"{name} is {value!r}; expected True or False.")
    if name in _REPEATED:
        return tuple(_split(name, value))
    return str(value) if isinstance(value, os.PathLike) else value


def _split(name: str, value: Any) -> Iterator[str]:
    """Yield the single values of an option that may be repeated."""
    if isinstance(value, Mapping):
        yield from (f"{key}={item}" for key, item in value.items())
    elif isinstance(value, str) and name in _WITH_COMMAS:
        yield from (item.strip() for item in value.split(","))
    elif isinstance(value, Iterable) and not isinstance(value, str):
        yield from map(str, value)
    else:
        yield str(value)


def _write_arguments(given: Mapping[str, Any]) -> Iterator[str]:
    """Yield options as arguments of a command line."""
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            if value:
                yield flag
            elif name == "raise_on_partial_outputs":
                yield "--no-raise-on-partial-outputs"
        elif name in _REPEATED or name in _ACTIONS:
            yield from (f"{flag}={item}" for item in _split(name, value))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield f"{flag}={','.join(map(str, value))}"
        else:
            yield f"{flag}={value}"


def _with_resources(request: RunRequest, requests: Mapping[str, Any] | None, memory: Any) -> RunRequest:
    """Return a request with the resources of tasks that were given as values instead of a file."""
    if requests is None and memory is None:
        return request
    resources = request.options.resources
    try:
        if requests is not None:
            resources = ResourceRequests.model_validate(requests)
        if memory is not None:
            resources = _with_memory(resources, _read_memory(memory))
    except pydantic.ValidationError as exc:
        raise OptionsError(f"resources: {explain_requests(exc)}") from exc
    options = request.options.model_copy(update={"resources": resources})
    return request.model_copy(update={"options": options})


def _with_memory(resources: ResourceRequests, megabytes: float) -> ResourceRequests:
    """Return resources with at least some memory for all tasks."""

    def more(values: Mapping[str, Any]) -> dict[str, Any]:
        changed = {"request_memory": max(values.get("request_memory") or 0.0, megabytes)}
        if (limit := values.get("memory_limit")) is not None:
            changed["memory_limit"] = max(limit, megabytes)
        return changed

    single = {
        label: request.model_copy(update=more(request.model_dump()))
        for label, request in resources.pipetask.items()
    }
    return resources.model_copy(update={**more(resources.model_dump()), "pipetask": single})


def _read_memory(memory: Any) -> float:
    """Read an amount of memory, and return it in MiB."""
    try:
        amount = ExecutionResources(num_cores=1, max_mem=memory, default_mem_units=u.MB).max_mem
        assert amount is not None
        megabytes = float(amount.to_value(u.byte)) / MIB
    except (ValueError, TypeError, AssertionError) as exc:
        raise OptionsError(f"memory is {memory!r}: {brief(exc) or 'expected an amount such as 4GB'}") from exc
    if not megabytes > 0:
        raise OptionsError(f"memory is {memory!r}; expected a positive amount such as 4GB.")
    return megabytes
