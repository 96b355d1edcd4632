"""Components and cutouts of datasets in memory, as a datastore would read them.  Runs in children."""

from __future__ import annotations

__all__ = ["read_part"]

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lsst.daf.butler import StorageClass
from lsst.pipe.base import InMemoryDatasetHandle
from lsst.utils.iteration import ensure_iterable

if TYPE_CHECKING:
    from lsst.images import Box, GeneralizedImage


def read_part(
    obj: Any,
    storage_class: StorageClass,
    component: str | None,
    parameters: Mapping[str, Any] | None,
    target: StorageClass,
) -> Any:
    """Read a dataset or a component of it, with parameters, and return it as a target storage class.

    The dataset is not changed, but the part may share its arrays.  A `KeyError` is raised if the
    storage class does not have such a parameter, and a `RuntimeError` if a component of an image
    can't be read with it.
    """
    if not component and not parameters:
        return target.coerce_type(obj)
    # Without the library there is no image; it takes workers half a second to import.
    images = sys.modules.get("lsst.images")
    if images is not None and isinstance(obj, images.GeneralizedImage):
        return target.coerce_type(_read_image_part(obj, storage_class, component, dict(parameters or {})))
    if component:
        handle = InMemoryDatasetHandle(obj, storageClass=storage_class)
        return handle.get(component=component, parameters=dict(parameters or {}), storageClass=target)
    target.validateParameters(parameters)
    # A datastore applies the parameters that its formatter doesn't know after the formatter's conversion.
    return target.delegate().handleParameters(target.coerce_type(obj), parameters)


def _read_image_part(
    image: GeneralizedImage, storage_class: StorageClass, component: str | None, parameters: dict[str, Any]
) -> Any:
    """Read a part of an image, as the formatter of lsst.images does: there is no delegate for its types."""
    from lsst.images import Box

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
    """Read one component of an image, or a cutout of it."""
    from lsst.images import MaskedImage

    if name == "masked_image" and not hasattr(image, name):
        assert isinstance(image, MaskedImage)
        value: Any = MaskedImage(image.image, mask=image.mask, variance=image.variance)
    else:
        value = getattr(image, name)
    return value if bbox is None else value[bbox]
