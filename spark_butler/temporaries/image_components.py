"""Components and cutouts of images of `lsst.images` in memory; for children of workers."""

from __future__ import annotations

__all__ = ["is_image", "read_image_part"]

from typing import Any

from lsst.daf.butler import StorageClass
from lsst.images import Box, GeneralizedImage, MaskedImage
from lsst.utils.iteration import ensure_iterable


def is_image(obj: object) -> bool:
    """Return whether an object is an image of `lsst.images`.

    Parameters
    ----------
    obj
        Any object.
    """
    return isinstance(obj, GeneralizedImage)


def read_image_part(
    image: GeneralizedImage, storage_class: StorageClass, component: str | None, parameters: dict[str, Any]
) -> Any:
    """Read a part of an image, as the formatter of lsst.images does: there is no delegate for its types.

    Parameters
    ----------
    image
        The whole image.
    storage_class
        Its storage class.
    component
        Name of the component; `None` for the whole.
    parameters
        Read parameters, which are used up.

    Raises
    ------
    RuntimeError
        Raised if a component can't be read with such parameters.
    """
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
