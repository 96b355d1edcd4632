"""Register an instrument that a YAML file describes."""

from __future__ import annotations

__all__ = ("register_instrument",)

import logging

from lsst.daf.butler import (
    Butler,
    CollectionType,
    DatasetType,
    MissingCollectionError,
    MissingDatasetTypeError,
    Timespan,
)
from lsst.daf.butler.registry import ConflictingDefinitionError
from lsst.resources import ResourcePathExpression

from ..errors import RepositoryError
from .camera.description import CameraDescription, CameraDescriptionError
from .camera.exposures import describe_raw
from .camera.frame_detector import check_size, describe_frame
from .camera.header_fields import HeaderValueError
from .camera.raw_fits import RawFileError, display_name, read_raw_header
from .instrument import YamlInstrument

logger = logging.getLogger(__name__)

_IMAGE = "ImageV2"
_MASTER = "MaskedImageV2"
_TABLE = "ArrowAstropy"
_DATASET_TYPES: tuple[tuple[str, tuple[str, ...], str, bool], ...] = (
    ("raw", ("instrument", "exposure", "detector"), _IMAGE, False),
    ("camera", ("instrument",), "StructuredDataDict", True),
    ("bias", ("instrument", "detector"), _MASTER, True),
    ("dark", ("instrument", "detector"), _MASTER, True),
    ("flat", ("instrument", "detector", "physical_filter"), _MASTER, True),
    ("defects", ("instrument", "detector"), _TABLE, True),
    ("linearizer", ("instrument", "detector"), _TABLE, True),
    ("ptc", ("instrument", "detector"), _TABLE, True),
)


def register_instrument(
    butler: Butler, camera: ResourcePathExpression, *, update: bool = False
) -> CameraDescription:
    """Make a described instrument known to a repository; ``camera`` is a YAML file.

    Registers the records of the instrument, its detectors and its filters, the dataset types of raw data and
    calibrations, the instrument's collections, and the description itself as the ``camera`` dataset, which is
    certified for all times.  Doing it again changes nothing.

    Only with ``update``, a description replaces another one in the repository, and only if it fits the newest
    raw frame there.
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
    _register_dataset_types(butler)
    try:
        instrument.register(butler.registry, update=update)
    except ConflictingDefinitionError as err:
        raise RepositoryError(f"{hint} ({' '.join(str(err).split())})") from None
    _define_collections(butler, instrument)
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


def _register_dataset_types(butler: Butler) -> None:
    """Register the dataset types of raw data and calibrations."""
    for name, dimensions, storage_class, is_calibration in _DATASET_TYPES:
        if storage_class == _MASTER and any(butler.registry.queryDatasetTypes(name)):
            # In repositories of earlier releases masters are plain images, and stay so.
            continue
        dataset_type = DatasetType(
            name, dimensions, storage_class, universe=butler.dimensions, isCalibration=is_calibration
        )
        butler.registry.registerDatasetType(dataset_type)


def _define_collections(butler: Butler, instrument: YamlInstrument) -> None:
    """Register an instrument's collections and put them into its chain of defaults, where missing."""
    members = {
        instrument.makeDefaultRawIngestRunName(): CollectionType.RUN,
        instrument.makeCalibrationCollectionName(): CollectionType.CALIBRATION,
        instrument.makeUnboundedCalibrationRunName(): CollectionType.RUN,
        instrument.makeRefCatCollectionName(): CollectionType.CHAINED,
    }
    defaults = instrument.makeUmbrellaCollectionName()
    for name, collection_type in {**members, defaults: CollectionType.CHAINED}.items():
        butler.collections.register(name, collection_type)
    present = butler.collections.get_info(defaults).children
    if missing := [name for name in members if name not in present]:
        butler.collections.extend_chain(defaults, missing)


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
        if not refs:
            return
        uri = butler.getURI(refs[0])
        header = read_raw_header(uri)
    except (MissingCollectionError, MissingDatasetTypeError, RawFileError, LookupError) as err:
        logger.debug("There is no raw frame to check the description with: %s", err)
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
