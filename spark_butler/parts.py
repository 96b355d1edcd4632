"""Read a part of a dataset in memory, as a datastore would read it from a file."""

from __future__ import annotations

__all__ = ["read_part"]

from collections.abc import Mapping
from typing import Any

from lsst.daf.butler import StorageClass
from lsst.images import Box, GeneralizedImage, MaskedImage
from lsst.pipe.base import InMemoryDatasetHandle
from lsst.utils.iteration import ensure_iterable


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
    if isinstance(obj, GeneralizedImage):
        return target.coerce_type(_read_image(obj, storage_class, component, dict(parameters or {})))
    if component:
        handle = InMemoryDatasetHandle(obj, storageClass=storage_class)
        return handle.get(component=component, parameters=dict(parameters or {}), storageClass=target)
    target.validateParameters(parameters)
    # A datastore applies what parameters its formatter doesn't know to what the formatter has converted.
    return target.delegate().handleParameters(target.coerce_type(obj), parameters)


def _read_image(
    image: GeneralizedImage, storage_class: StorageClass, component: str | None, parameters: dict[str, Any]
) -> Any:
    """Do what the formatter of lsst.images does: there is no storage class delegate for its types."""
    components = storage_class.allComponents()
    bbox = parameters.pop("bbox", None)
    if bbox is not None and not isinstance(bbox, Box):
        bbox = Box.from_legacy(bbox)
    if component == "components":
        wanted = parameters.pop("components", None) or components.keys() - {"components", "masked_image"}
        names = list(ensure_iterable(wanted))
    else:
        names = [component] if component else []
    takers = [name for name in names if name in components and "bbox" in components[name].parameters]
    storage_class.validateParameters(parameters)
    if parameters or (component and bbox is not None and not takers):
        given = sorted(parameters) if parameters else ["bbox"]
        raise RuntimeError(f"Parameters {given} can't be used to read {component or 'all'} of an image.")
    if not component:
        return image[bbox]
    found = {name: _read_component(image, name, bbox if name in takers else None) for name in names}
    return found if component == "components" else found[component]


def _read_component(image: GeneralizedImage, name: str, bbox: Box | None) -> Any:
    if name == "masked_image" and not hasattr(image, name):
        assert isinstance(image, MaskedImage)
        value: Any = MaskedImage(image.image, mask=image.mask, variance=image.variance)
    else:
        value = getattr(image, name)
    return value if bbox is None else value[bbox]
