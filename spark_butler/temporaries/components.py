"""Components and cutouts of datasets in memory, as a datastore would read them from a file.

Runs in children of workers.
"""

from __future__ import annotations

__all__ = ["read_part"]

import sys
from collections.abc import Mapping
from typing import Any

from lsst.daf.butler import StorageClass
from lsst.pipe.base import InMemoryDatasetHandle


def read_part(
    obj: Any,
    storage_class: StorageClass,
    component: str | None,
    parameters: Mapping[str, Any] | None,
    target: StorageClass,
) -> Any:
    """Read a dataset or a component of it, with parameters.

    Parameters
    ----------
    obj
        The whole dataset; it is not changed, but the part may share its
        arrays.
    storage_class
        Its storage class.
    component
        Name of the component; `None` for the whole.
    parameters
        Read parameters.
    target
        Storage class to return it as.

    Raises
    ------
    KeyError
        Raised if the storage class does not have such a parameter.
    RuntimeError
        Raised if a component of an image can't be read with such parameters.
    """
    if not component and not parameters:
        return target.coerce_type(obj)
    # Without the library there is no image; it takes workers half a second to import.
    if "lsst.images" in sys.modules:
        from .image_components import is_image, read_image_part

        if is_image(obj):
            return target.coerce_type(read_image_part(obj, storage_class, component, dict(parameters or {})))
    if component:
        handle = InMemoryDatasetHandle(obj, storageClass=storage_class)
        return handle.get(component=component, parameters=dict(parameters or {}), storageClass=target)
    target.validateParameters(parameters)
    # A datastore applies what parameters its formatter doesn't know to what the formatter has converted.
    return target.delegate().handleParameters(target.coerce_type(obj), parameters)
