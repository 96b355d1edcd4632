"""Register an instrument that a YAML file describes."""

from __future__ import annotations

__all__ = ("register_instrument",)

import logging

from lsst.daf.butler import Butler, MissingCollectionError, MissingDatasetTypeError, Timespan
from lsst.daf.butler.registry import ConflictingDefinitionError
from lsst.resources import ResourcePathExpression

from ..errors import RepositoryError
from .camera.description import CameraDescription, CameraDescriptionError
from .camera.exposures import describe_raw
from .camera.frame_detector import check_size, describe_frame
from .camera.header_fields import HeaderValueError
from .camera.raw_fits import RawFileError, display_name, read_raw_header
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
    camera
        YAML file.
    update
        Whether a description that differs from the repository's replaces it.

    Raises
    ------
    CameraDescriptionError
        Raised if the description is not valid, or if a raw frame of the repository does not fit a description
        that replaces another one.
    RepositoryError
        Raised if the repository has another description, and ``update`` is false.
    """
    description = CameraDescription.from_yaml(camera)
    instrument = YamlInstrument.from_description(description)
    hint = f"the repository has another description of {description.name}; --update replaces it"
    run = instrument.makeUnboundedCalibrationRunName()
    present = None
    if run in butler.collections.query("*"):
        present = butler.find_dataset("camera", instrument=description.name, collections=run)
    content = description.model_dump(mode="json")
    changed = present is not None and not _is_same(butler.get(present), description)
    if changed and not update:
        raise RepositoryError(hint)
    if changed:
        _check_with_raw(butler, description)
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


def _is_same(stored: object, description: CameraDescription) -> bool:
    """Return whether a stored description, perhaps without newer keys, means the same."""
    try:
        return CameraDescription.from_dict(stored) == description
    except CameraDescriptionError:
        return False


def _check_with_raw(butler: Butler, description: CameraDescription) -> None:
    """Raise if the newest raw frame in the repository does not fit a new description of its camera."""
    run = YamlInstrument.from_description(description).makeDefaultRawIngestRunName()
    try:
        refs = butler.query_datasets(
            "raw", run, instrument=description.name, explain=False, limit=1, order_by="-exposure"
        )
        uri = butler.getURI(refs[0]) if refs else None
        header = read_raw_header(uri) if uri is not None else None
    except (MissingCollectionError, MissingDatasetTypeError, RawFileError, LookupError) as err:
        logger.debug("There is no raw frame to check the description with: %s", err)
        return
    if uri is None or header is None:
        return
    name = display_name(uri)
    try:
        if (mismatch := description.mismatch(header)) is not None:
            raise HeaderValueError(mismatch)
        found = describe_raw(uri, header, description).data_id
        check_size(header, describe_frame(description, found["detector"], header))
    except HeaderValueError as err:
        raise CameraDescriptionError(
            f"the new description does not fit {name}, a frame of the repository, and replaces nothing: {err}"
        ) from None
    if found != dict(refs[0].dataId.required):
        raise CameraDescriptionError(
            f"the new description makes {found} of {name}, which is {dict(refs[0].dataId.required)} in the "
            "repository; keep exposure_id and detector, or make a new repository"
        )
