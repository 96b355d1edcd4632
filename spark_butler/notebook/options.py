"""What a call of ``SparkButler.run`` asks for, read as the options of the command are."""

from __future__ import annotations

__all__ = ["in_words_of_python", "make_notebook_request"]

import dataclasses
import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import astropy.units as u
import click
import pydantic
from lsst.pipe.base import ExecutionResources, Pipeline, PipelineTask
from lsst.utils.introspection import get_full_type_name

from ..cli.request import make_request
from ..cli.run import make_run_command
from ..errors import OptionsError
from ..model.limits import MIB, ResourceRequests
from ..planning.graph import RunRequest
from ..report import clean_command
from ..repository.checks import check_repository
from ..text import brief, explain_invalid

_OTHER_NAMES = {"where": "data_query"}
_ELSEWHERE = {
    "backend": "a notebook runs on Spark",
    "butler_config": "the SparkButler has its repository",
    "dry_run": "use SparkButler.plan()",
    "form": "use Run.report()",
    "show": "use SparkButler.plan()",
    "init_only": "use the command",
    "summary": "use Run.report()",
    "debug": "use the command",
    "pdb": "use `pipetask run --pdb`",
    "progress": "a run shows its own table",
    "profile": "use the command with --backend serial",
    "coverage": "use the command with --backend serial",
    **dict.fromkeys(
        ["log_level", "long_log", "log_file", "log_tty", "log_label"], "use the logging of the notebook"
    ),
}
_OF_THE_COMMAND = ("backend", "dry_run", "form", "log_level", "long_log", "log_file", "log_tty", "log_label")
_IN_MEMORY = Path("(the pipeline in this notebook)")
_PIPELINES = "the address of a pipeline file, a Pipeline or the class of a PipelineTask"
_OTHER_NAMES_BACK = {option: name for name, option in _OTHER_NAMES.items()}
# What is written as a command is left as it is.
_FLAG = re.compile(r"(?P<command>`[^`]*`)|(?<![\w-])--(?P<option>[a-z][a-z-]*[a-z])")

type PipelineLike = str | os.PathLike[str] | Pipeline | type[PipelineTask]


def make_notebook_request(repo: str, pipeline: PipelineLike | None, options: Mapping[str, Any]) -> RunRequest:
    """Read the arguments of a run.

    Parameters
    ----------
    repo
        Address or alias of the repository.
    pipeline
        Address of a pipeline file, a pipeline, or the class of a task; `None`
        where the options name tasks or a quantum graph.
    options
        Values of the options of the command ``run``, by their names with
        underscores; ``where`` stands for ``data_query``, ``memory`` for the
        memory that each task may have.  Flags are booleans, options that may
        be repeated take lists, ``config`` takes a mapping.

    Returns
    -------
    request
        The request, with all defaults of the command, but that dataset types
        are registered.

    Raises
    ------
    spark_butler.errors.OptionsError
        Raised if there is no such option, or a value makes no sense.
    """
    given = {_OTHER_NAMES.get(name, name): value for name, value in options.items() if value is not None}
    only_here = "memory" in given or isinstance(given.get("resources"), Mapping)
    memory, requests = given.pop("memory", None), given.get("resources")
    if isinstance(requests, Mapping):
        del given["resources"]
    given.setdefault("register_dataset_types", True)
    command = make_run_command()
    arguments = ["--butler-config", repo]
    default = _IN_MEMORY if isinstance(pipeline, Pipeline) else None
    is_of_cell = isinstance(pipeline, type) and pipeline.__module__ == "__main__"
    only_here = only_here or default is not None or is_of_cell
    arguments += _name_pipeline(pipeline, given)
    arguments += _write_arguments(command, given)
    try:
        context = command.make_context("run", list(arguments))
    except click.ClickException as exc:
        raise OptionsError(exc.format_message()) from exc
    check_repository(repo)
    values = {name: value for name, value in context.params.items() if name not in _OF_THE_COMMAND}
    request = make_request(context, values, default_pipeline=default)
    if isinstance(pipeline, Pipeline):
        # Options may change it.
        copied = Pipeline.fromPipeline(pipeline)
        request = dataclasses.replace(request, arguments={**request.arguments, "pipeline": copied})
    if not only_here:
        request = dataclasses.replace(request, command=clean_command(["spark-butler", "run", *arguments]))
    return _with_resources(request, requests if isinstance(requests, Mapping) else None, memory)


def in_words_of_python(text: str) -> str:
    """Name options in an error as the arguments of a call in Python.

    Parameters
    ----------
    text
        The error, which names them as the command does.
    """

    def name(match: re.Match[str]) -> str:
        if match["command"]:
            return match[0]
        option = match["option"].replace("-", "_")
        return _OTHER_NAMES_BACK.get(option, option)

    return _FLAG.sub(name, text)


def _name_pipeline(pipeline: object, given: Mapping[str, Any]) -> Iterator[str]:
    """Write the pipeline as arguments of a command line."""
    if pipeline is None:
        if not any(given.get(name) for name in ("pipeline", "task", "qgraph")):
            raise OptionsError(f"There is no pipeline; expected {_PIPELINES}, or task= or qgraph=.")
    elif isinstance(pipeline, type) and issubclass(pipeline, PipelineTask):
        yield from ("--task", f"{get_full_type_name(pipeline)}:{pipeline._DefaultName}")
    elif isinstance(pipeline, str | os.PathLike):
        yield from ("--pipeline", os.fspath(pipeline))
    elif not isinstance(pipeline, Pipeline):
        raise OptionsError(f"pipeline is {pipeline!r}; expected {_PIPELINES}.")


def _write_arguments(command: click.Command, given: Mapping[str, Any]) -> Iterator[str]:
    """Write options as arguments of a command line."""
    known = {param.name: param for param in command.params if isinstance(param, click.Option)}
    for name, value in given.items():
        if name in _ELSEWHERE:
            raise OptionsError(f"{name} has no meaning in a notebook: {_ELSEWHERE[name]}.")
        if (option := known.get(name)) is None:
            near = difflib.get_close_matches(name, [*known, *_OTHER_NAMES, "memory"], n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else "."
            raise OptionsError(f"There is no option {name!r}{hint}")
        yield from _write_option(option, value)


def _write_option(option: click.Option, value: Any) -> Iterator[str]:
    """Write an option and its values."""
    flag = max(option.opts, key=len)
    if option.is_flag:
        if not isinstance(value, bool):
            raise OptionsError(f"{option.name} is {value!r}; expected True or False.")
        off = max(option.secondary_opts, key=len, default="")
        if value or off:
            yield flag if value else off
        return
    if isinstance(value, Mapping):
        value = [f"{key}={item}" for key, item in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = list(map(str, value)) if option.multiple else [",".join(map(str, value))]
    else:
        value = [str(value)]
    yield from (f"{flag}={item}" for item in value)


def _with_resources(request: RunRequest, requests: Mapping[str, Any] | None, memory: Any) -> RunRequest:
    """Add what is asked for tasks by values instead of a file."""
    if requests is None and memory is None:
        return request
    resources = request.options.resources
    try:
        if requests is not None:
            resources = ResourceRequests.model_validate(requests)
        if memory is not None:
            resources = _with_memory(resources, _read_memory(memory))
    except pydantic.ValidationError as exc:
        text = explain_invalid(exc, unknown="there is no request {name!r}.")
        raise OptionsError(f"resources: {text}") from exc
    options = request.options.model_copy(update={"resources": resources})
    return dataclasses.replace(request, options=options)


def _with_memory(resources: ResourceRequests, megabytes: float) -> ResourceRequests:
    """Give all tasks at least some memory."""

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
        raise OptionsError(f"memory is {memory!r}; expected more than nothing.")
    return megabytes
