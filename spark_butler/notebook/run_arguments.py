"""Keyword arguments of `SparkButler.run`, for its signature and documentation.  Runs in the driver."""

from __future__ import annotations

__all__ = ["DEFAULTS", "RunArguments", "with_run_arguments"]

import inspect
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict

from ..model.options import RunOptions
from ..planning.request import RunRequest

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
        annotation, text = typing.get_args(hint)[0], typing.get_args(hint)[1]
        kept.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS[name], annotation=annotation
            )
        )
        lines += [name, f"    {text}"]
    head, heading, rest = inspect.cleandoc(method.__doc__ or "").partition("Returns\n-------\n")
    method.__doc__ = head + "\n".join([*lines, "", heading]) + rest
    method.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return method
