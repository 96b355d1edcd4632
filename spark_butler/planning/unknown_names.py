"""Similar names for unknown names in a request: tasks, fields and classes.  Runs in the driver."""

from __future__ import annotations

__all__ = ["hint_at_pipeline"]

import importlib
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from lsst.pex.config import Config
from lsst.pex.config.configurableField import ConfigurableInstance
from lsst.pipe.base import Pipeline
from lsst.resources import ResourcePath
from lsst.utils import doImportType

from ..text import best_effort, suggest
from .request import RunRequest


def hint_at_pipeline(request: RunRequest) -> str:
    """Return the remedy for an unknown name in a request whose pipeline can't be built; empty without one."""
    with best_effort("Can't search for similar names", level=logging.DEBUG):
        return next(_find_unknown(request), "")
    return ""


def _find_unknown(request: RunRequest) -> Iterator[str]:
    """Yield a remedy for each unknown name."""
    configs: dict[str, Any] = {}
    names: set[str] = set()
    if isinstance(request.pipeline, str):
        path, _, labels = request.pipeline.partition("#")
        uri = ResourcePath(path, forceDirectory=False)
        if not uri.exists():
            near = os.listdir(os.path.dirname(uri.ospath)) if uri.isLocal else ()
            yield suggest(uri.basename(), near, "check the address of the pipeline.")
            return
        pipeline = Pipeline.from_uri(uri)
        configs = {label: node.config for label, node in pipeline.to_graph().tasks.items()}
        names = {*configs, *pipeline.subsets}
        yield from (suggest(label, names) for label in labels.split(",") if labels and label not in names)
    for action in request.pipeline_actions:
        label = action.label
        if action.action == "new_task":
            yield from _suggest_task(action.value)
            label = label or action.value.rpartition(".")[2]
            task: Any = doImportType(action.value)
            configs[label] = task.ConfigClass()
            names.add(label)
        elif label and label not in names:
            yield suggest(label, configs)
        elif action.action == "config" and label in configs:
            yield from _suggest_field(configs[label], action.value.partition("=")[0])
    words = re.findall(r"[\w:]+", request.select_tasks)
    yield from (suggest(word, names) for word in words if word not in names)


def _suggest_task(name: str) -> Iterator[str]:
    """Yield the remedy for a class that can't be imported."""
    module, _, member = name.rpartition(".")
    try:
        found = vars(importlib.import_module(module))
    except ImportError:
        yield f"install what has the module {module!r}, or put its folder on PYTHONPATH."
        return
    if member not in found:
        yield suggest(member, (each for each in found if each.endswith("Task")))


def _suggest_field(config: Any, path: str) -> Iterator[str]:
    """Yield similar names for the first unknown field in a path through a configuration."""
    for name in path.split("."):
        if not isinstance(config, Config):
            return
        if name not in config:
            known = list(config)
            yield suggest(name, known, "" if known else "it has no fields.")
            return
        config = getattr(config, name)
        if isinstance(config, ConfigurableInstance):
            config = config.value
