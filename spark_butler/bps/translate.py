"""Translation of a generic workflow of BPS into the steps of a detached job.  Runs in ``bps prepare``."""

from __future__ import annotations

__all__ = ["translate"]

import dataclasses
import functools
import logging
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import networkx
import yaml
from lsst.ctrl.bps import BpsConfig, GenericWorkflow, GenericWorkflowJob

from ..atomic_write import atomic_write
from ..detached.job import Step, find_program
from ..errors import OptionsError

logger = logging.getLogger(__name__)

RUN_STEP = "run"
"""Name of the step that runs the quanta."""

# Attributes of a BPS job that Spark can't satisfy.
_WITHOUT_MEANING = (
    *("request_disk", "accounting_group", "accounting_user", "mail_to", "when_to_mail", "abort_on_value"),
    *("abort_return_value", "category", "queue", "pre_cmdline", "post_cmdline", "compute_cloud"),
    *("profile", "attrs"),
)


def translate(
    config: BpsConfig, workflow: GenericWorkflow, folder: Path
) -> tuple[list[Step], dict[str, Any]]:
    """Translate a workflow into the steps of a job, in order, and the data that ``bps report`` needs.

    Jobs without quanta become steps of their own; all jobs with quanta become
    one run of ``spark-butler run-qbb``.
    """
    jobs = list(_list_jobs(workflow))
    payload = [job for job in jobs if job.quanta_counts]
    steps = []
    for job in jobs:
        if not job.quanta_counts:
            steps.append(_plain_step(workflow, job))
        elif job is payload[0]:
            steps.append(_run_step(config, workflow, payload, folder))
    if isinstance(final := workflow.get_final(), GenericWorkflowJob):
        always = str(config.search(".finalJob.whenRun", opt={"default": "ALWAYS"})[1]).upper() == "ALWAYS"
        steps.append(dataclasses.replace(_plain_step(workflow, final), always=always))
    _warn_of(payload)
    labels: Counter[str] = Counter()
    for job in payload:
        labels.update(job.quanta_counts)
    values = payload[0].cmdvals if payload else {}
    return steps, {
        "name": workflow.name,
        "run": workflow.run_attrs.get("bps_run", workflow.name),
        "payload": _find(config, "payloadName"),
        "operator": _find(config, "operator"),
        "site": _find(config, "computeSite"),
        "output_run": _find(config, "outputRun"),
        "repository": str(values.get("butlerConfig", "")),
        "quanta": dict(labels),
        "project": _find(config, "project"),
        "campaign": _find(config, "campaign"),
    }


def _list_jobs(workflow: GenericWorkflow) -> Iterable[GenericWorkflowJob]:
    """Yield the jobs of a workflow and of its groups in an order that respects their edges."""
    for name in networkx.topological_sort(workflow):
        node = workflow.get_job(name)
        if isinstance(node, GenericWorkflowJob):
            yield node
            continue
        logger.warning("The %s %r orders jobs, which has no meaning on Spark.", type(node).__name__, name)
        if isinstance(node, GenericWorkflow):
            yield from _list_jobs(node)


def _plain_step(workflow: GenericWorkflow, job: GenericWorkflowJob) -> Step:
    """Return the step of a job without quanta."""
    final = job.retry_unless_exit
    return Step(
        job.name,
        ("/bin/bash", "-c", _fill(workflow, job)),
        retries=job.number_of_retries or 0,
        final_statuses=tuple(final) if isinstance(final, list | tuple) else () if final is None else (final,),
        environment={name: str(value) for name, value in job.environment.items()},
    )


def _fill(workflow: GenericWorkflow, job: GenericWorkflowJob) -> str:
    """Return the command line of a job, with files and values filled in."""
    assert job.executable is not None
    text = f"{job.executable.src_uri} {job.arguments or ''}"
    text = re.sub(r"<FILE:([^>]+)>", lambda match: workflow.get_file(match[1]).src_uri, text)
    return _text(text.format(**job.cmdvals) if job.cmdvals else text)


def _run_step(
    config: BpsConfig, workflow: GenericWorkflow, payload: list[GenericWorkflowJob], folder: Path
) -> Step:
    """Return the step that runs all quanta."""
    for job in payload:
        if "run-qbb" not in (job.arguments or ""):
            raise OptionsError(
                f"The job {job.name!r} runs {job.arguments!r}; on Spark, runQuantumCommand can only be "
                "`pipetask run-qbb`, whose options go to extraRunQuantumOptions."
            )
    values = payload[0].cmdvals
    options = os.path.expandvars(_text(values.get("extraRunQuantumOptions")))
    before = os.path.expandvars(_text(values.get("runPreCmdOpts")))
    resources = folder / "resources.yaml"
    with atomic_write(str(resources)) as path:
        path.write_text(yaml.safe_dump(_find_requests(config, payload)))
    cores = max(job.request_cpus or 1 for job in payload)
    command = [
        *_find_program(config, payload, cores),
        *shlex.split(before),
        "run-qbb",
        os.path.expandvars(_text(values["butlerConfig"])),
        workflow.get_file("runQgraphFile").src_uri,
        *("--resources", str(resources)),
        *("--cores-per-quantum", str(cores)),
        *_find_grouping(config),
        *shlex.split(options),
    ]
    environment = {name: str(value) for job in payload for name, value in job.environment.items()}
    return Step(RUN_STEP, tuple(command), environment=environment)


def _find(config: BpsConfig, name: str, **options: Any) -> str:
    """Return a setting as text, empty if it is absent."""
    return str(config.search(name, opt={"default": "", **options})[1])


def _text(value: object) -> str:
    """Return a value with shell variables in place of those of BPS."""
    return re.sub(r"<ENV:([^>]+)>", r"${\1}", str(value or ""))


def _find_requests(config: BpsConfig, payload: list[GenericWorkflowJob]) -> dict[str, Any]:
    """Return memory, time and retries of all tasks, in the form of the ``--resources`` file."""
    limit = int(config.search("memoryLimit", opt={"default": 0})[1] or 0)
    tasks: dict[str, dict[str, Any]] = {}
    for job in payload:
        most = job.request_memory_max or limit
        walltime = job.request_walltime
        for label in job.quanta_counts:
            task = tasks.setdefault(label, {})
            _raise_to(task, "requestMemory", job.request_memory)
            _raise_to(task, "memoryLimit", max(most, job.request_memory or 0) if most else None)
            _raise_to(task, "memoryMultiplier", max(1.0, job.memory_multiplier or 1.0))
            _raise_to(task, "numberOfRetries", job.number_of_retries)
            _raise_to(task, "timeout", float(walltime) if walltime else None)
    return {"pipetask": tasks}


def _raise_to(task: dict[str, Any], name: str, value: float | None) -> None:
    """Raise a request to the greatest value of several jobs."""
    if value:
        task[name] = max(value, task.get(name, value))


def _find_grouping(config: BpsConfig) -> list[str]:
    """Return ``--group-by`` for the definitions of clusters, if they have dimensions in common."""
    algorithm = _find(config, "clusterAlgorithm").rpartition(".")[2]
    if algorithm != "dimension_clustering":
        if algorithm not in ("", "single_quantum_clustering"):
            logger.warning(
                "clusterAlgorithm %s has no meaning on Spark; the planner chooses the groups.", algorithm
            )
        return []
    section = config["cluster"]
    found = {
        tuple(name.strip().split(":")[0] for name in str(section[label]["dimensions"]).split(",") if name)
        for label in section
        if label != "clusterTemplate" and "dimensions" in section[label]
    }
    if len(found) != 1:
        text = "; ".join(sorted(", ".join(names) for names in found)) or "none"
        logger.warning(
            "The clusters have no common dimensions (%s), which --group-by would need; the planner chooses "
            "the groups.",
            text,
        )
        return []
    return ["--group-by", ",".join(found.pop())]


def _find_program(config: BpsConfig, payload: Iterable[GenericWorkflowJob], cores: int) -> list[str]:
    """Return the first words of the command line, according to the section of the compute site."""
    site = _find(config, "computeSite")
    find = functools.partial(_find, config, curvals={"curr_site": site})

    settings = _read_settings(config, site)
    if cores > 1:
        settings["spark.task.cpus"] = str(cores)
    master = find("sparkMaster")
    priorities = {str(job.priority) for job in payload if job.priority is not None}
    if priorities and master == "yarn":
        settings["spark.yarn.priority"] = max(priorities)
    elif priorities:
        logger.warning("priority has a meaning only with sparkMaster yarn; it is %s.", ", ".join(priorities))
    if not (master or settings):
        return find_program(None, "")
    options = ["--master", master] if master else []
    if mode := find("sparkDeployMode"):
        options += ["--deploy-mode", mode]
    for name, value in settings.items():
        options += ["--conf", f"{name}={value}"]
    return find_program(options, "sparkMaster and sparkConf need")


def _read_settings(config: BpsConfig, site: str) -> dict[str, str]:
    """Return the Spark settings of a compute site."""
    found, section = config.search("sparkConf", opt={"curvals": {"curr_site": site}, "replaceVars": False})
    if not found or not section:
        return {}
    if isinstance(section, str):
        raise OptionsError(f"sparkConf of site {site!r} is {section!r}; expected settings of Spark by name.")
    return dict(_flatten(section))


def _flatten(section: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield settings by full name, from names with dots and from nested sections."""
    for name in section:
        value = section[name]
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _warn_of(payload: list[GenericWorkflowJob]) -> None:
    """Log a warning that names the settings that have no effect on Spark."""
    for name in _WITHOUT_MEANING:
        if labels := sorted({job.label for job in payload if getattr(job, name)}):
            logger.warning("%s has no meaning on Spark; it is set for %s.", name, ", ".join(labels))
    for job in payload:
        final = job.retry_unless_exit
        statuses = [final] if isinstance(final, int) else final or []
        if job.number_of_retries and 1 not in statuses:
            logger.warning(
                "retryUnlessExit lacks 1, but exceptions of tasks are never retried on Spark; only transient "
                "failures are."
            )
            break
