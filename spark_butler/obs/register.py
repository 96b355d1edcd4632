"""Register an instrument that a YAML file describes."""

from __future__ import annotations

__all__ = ("register_instrument",)

import logging

from lsst.daf.butler import Butler, Timespan
from lsst.daf.butler.registry import ConflictingDefinitionError
from lsst.resources import ResourcePathExpression

from ..errors import RepositoryError
from .description import CameraDescription
from .instrument import YamlInstrument
from .repository import define_collections, register_dataset_types

logger = logging.getLogger(__name__)


def register_instrument(
    butler: Butler, camera: ResourcePathExpression, *, update: bool = False
) -> CameraDescription:
    """Make a described instrument known to a repository.

    Registers the records of the instrument, its detectors and its filters, the dataset types of raw data and
    calibrations, the instrument's collections, and the description itself as the ``camera`` dataset, which is
    certified for all times.  Doing it again changes nothing.

    Parameters
    ----------
    butler
        Writeable butler.
    camera
        YAML file.
    update
        Whether a description that differs from the repository's replaces it.

    Raises
    ------
    CameraDescriptionError
        Raised if the description is not valid.
    RepositoryError
        Raised if the repository has another description, and ``update`` is false.
    """
    description = CameraDescription.from_yaml(camera)
    instrument = YamlInstrument.from_description(description)
    hint = f"the repository has another description of {description.name}; update replaces it"
    run = instrument.makeUnboundedCalibrationRunName()
    present = None
    if run in butler.collections.query("*"):
        present = butler.find_dataset("camera", instrument=description.name, collections=run)
    content = description.model_dump(mode="json")
    changed = present is not None and butler.get(present) != content
    if changed and not update:
        raise RepositoryError(hint)
    register_dataset_types(butler)
    try:
        instrument.register(butler.registry, update=update)
    except ConflictingDefinitionError as err:
        raise RepositoryError(f"{hint} ({' '.join(str(err).split())})") from None
    define_collections(butler, instrument)
    if changed:
        assert present is not None
        butler.pruneDatasets([present], disassociate=True, unstore=True, purge=True)
    if changed or present is None:
        ref = butler.put(content, "camera", instrument=description.name, run=run)
        butler.registry.certify(instrument.makeCalibrationCollectionName(), [ref], Timespan(None, None))
        logger.info("Registered %s with %d detectors.", description.name, len(description.detectors))
    else:
        logger.info("%s is registered already.", description.name)
    return description
