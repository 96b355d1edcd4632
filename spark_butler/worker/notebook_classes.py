"""Pickling of classes that were written in a notebook's cell; the driver pickles, workers unpickle.

Cloudpickle sends a class of ``__main__`` by value, and rebuilds it by calling
its metaclass.  The metaclasses of configurations and connections can't be called
like that.  Besides, a configuration is read as Python code that finds its class
in the module ``__main__``.
"""

from __future__ import annotations

__all__ = ["check_tasks", "dump_by_name", "dump_context", "dump_with_classes"]

import dataclasses
import io
import logging
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import cloudpickle
from lsst.daf.butler import Quantum
from lsst.pex.config import Config, ConfigMeta
from lsst.pipe.base import PipelineTaskConnections, Task
from lsst.pipe.base.pipeline_graph import TaskNode

from ..errors import OptionsError
from ..model.work import PackedTasks, WorkerContext
from ..text import brief

logger = logging.getLogger(__name__)

_MAIN = "__main__"
_METACLASSES = (ConfigMeta, type(PipelineTaskConnections))
_KINDS = (Config, PipelineTaskConnections, Task)


def dump_with_classes(obj: Any) -> bytes:
    """Pickle an object with all classes of this process's ``__main__`` that it needs.

    ``pickle.loads(data)[1]`` opens it.  Tasks, configurations and connections of ``__main__`` are
    then in the ``__main__`` of the process that opens it, too.
    """
    stream = io.BytesIO()
    # One pickle, so that the object refers to the classes that were installed just before it.
    _Pickler(stream).dump((_Installed(_find_classes(vars(sys.modules[_MAIN]).values())), obj))
    return stream.getvalue()


def dump_context(context: WorkerContext) -> bytes:
    """Pickle a context as `dump_with_classes` does, with tasks that are imported where they are used."""
    nodes = dict(context.task_nodes)
    modules = sorted({node.task_class_name.rpartition(".")[0] for node in nodes.values()})
    packed = PackedTasks(dump_by_name(nodes), tuple(modules))
    return dump_with_classes(dataclasses.replace(context, task_nodes=packed))


def check_tasks(tasks: Mapping[str, TaskNode]) -> None:
    """Check that tasks written in this process can be sent to workers; raise an `OptionsError` if not."""
    for label, node in tasks.items():
        if _is_of_main(node.task_class) and (reason := _why_not(node.task_class)) is not None:
            raise OptionsError(f"Task {label!r} can't be sent to workers: {brief(reason)}") from reason


def dump_by_name(obj: Any) -> bytes:
    """Pickle an object for a process that has the classes of `dump_with_classes` already."""
    stream = io.BytesIO()
    _NamePickler(stream).dump(obj)
    return stream.getvalue()


class _Installed:
    """Classes that are put into ``__main__`` when this is unpickled."""

    def __init__(self, classes: Mapping[str, type]):
        self._classes = dict(classes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _install, (self._classes,)


def _install(classes: Mapping[str, type]) -> None:
    """Put classes into this process's ``__main__``."""
    vars(sys.modules[_MAIN]).update(classes)


def _find_classes(objects: Iterable[object]) -> dict[str, type]:
    """Find the classes among objects that configurations may name, by their names."""
    return {each.__name__: each for each in list(objects) if _is_of_main(each) and _why_not(each) is None}


def _why_not(each: type) -> Exception | None:
    """Return the error of pickling a class; the class may not be needed at all."""
    try:
        _Pickler(io.BytesIO()).dump(each)
    except Exception as exc:  # as many as there are things that a class may refer to
        logger.debug("%s stays here.", each, exc_info=True)
        return exc
    return None


def _is_of_main(obj: object) -> TypeGuard[type]:
    return isinstance(obj, type) and issubclass(obj, _KINDS) and obj.__module__ == _MAIN


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Cloudpickle, also for classes of configurations and connections."""

    def reducer_override(self, obj: Any) -> Any:
        reduced = super().reducer_override(obj)
        if isinstance(obj, _METACLASSES) and isinstance(reduced, tuple):
            _, arguments, state, *_ = reduced
            return _make_class, arguments[:4], state, None, None, _fill_class
        return reduced


class _NamePickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Cloudpickle that takes classes of ``__main__`` by name, and quanta without their task classes."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Quantum:
            # The child that runs the task imports the class when it needs it.
            parts = dict(obj.initInputs.items()), dict(obj.inputs), dict(obj.outputs), obj.datastore_records
            return _make_quantum, (obj.taskName, obj.dataId, *parts)
        if _is_of_main(obj) and vars(sys.modules[_MAIN]).get(obj.__name__) is obj:
            return NotImplemented
        return super().reducer_override(obj)


def _make_quantum(
    name: str, data_id: Any, init_inputs: Any, inputs: Any, outputs: Any, records: Any
) -> Quantum:
    return Quantum(
        taskName=name,
        dataId=data_id,
        initInputs=init_inputs,
        inputs=inputs,
        outputs=outputs,
        datastore_records=records,
    )


def _make_class(metaclass: type, name: str, bases: tuple[type, ...], start: Mapping[str, Any]) -> type:
    """Build a class without its metaclass's processing of definitions, which has been done."""
    made: type = type.__new__(metaclass, name, bases, dict(start))
    return made


def _fill_class(made: type, state: tuple[Mapping[str, Any], Mapping[str, Any]]) -> type:
    """Give a class the attributes that the definition has led to."""
    for part in state:
        for name, value in (part or {}).items():
            # The attribute setter of a configuration class would add to the fields of its base class.
            type.__setattr__(made, name, value)
    return made
