"""Keep a worker warm: what its children had to import, it imports for those to come."""

from __future__ import annotations

__all__ = ["Imported", "import_for_children", "imported_since"]

import dataclasses
import importlib
import logging
import sys
import time
from collections.abc import Collection, Iterable

from .clock import note_imports

logger = logging.getLogger(__name__)

_tried: set[str] = set()


@dataclasses.dataclass(frozen=True, slots=True)
class Imported:
    """Word from a child of what it had to import."""

    names: tuple[str, ...]
    """Names of modules, in the order in which they were imported."""


def imported_since(before: Collection[str]) -> Imported:
    """List the modules that this process has imported.

    Parameters
    ----------
    before
        Names of the modules that it had before.
    """
    return Imported(
        tuple(
            name
            for name, module in list(sys.modules.items())
            # Some names stand for what is in another module, or for nothing.
            if name not in before and getattr(module, "__spec__", None) is not None
        )
    )


def import_for_children(names: Iterable[str]) -> None:
    """Import modules, each once in the life of this process.

    Parameters
    ----------
    names
        Names of modules; those that can't be imported here are left alone.
    """
    began = time.time()
    missing = [name for name in names if name not in sys.modules and name not in _tried]
    for name in missing:
        _tried.add(name)
        try:
            importlib.import_module(name)
        except Exception:  # noqa: BLE001  (a module may raise anything, and the next child will see)
            logger.debug("A worker can't import %s.", name, exc_info=True)
    if missing:
        note_imports(began)
