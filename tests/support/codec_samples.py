"""Instances of every storage class of the default butler configuration that PyPI can provide."""

from __future__ import annotations

__all__ = ["SAMPLES", "make_sky_projection", "make_visit_image"]

import logging
import uuid
from collections.abc import Callable
from typing import Any

import astropy.table
import astropy.time
import astropy.units as u
import lsst.sphgeom
import numpy as np
import pyarrow as pa
import starlink.Ast
from astro_metadata_translator import ObservationInfo
from astropy.coordinates import EarthLocation, SkyCoord
from astropy.utils.masked import Masked
from lsst.daf.butler import ButlerLogRecords, Timespan
from lsst.daf.butler.formatters import parquet
from lsst.images import (
    YX,
    Background,
    BackgroundMap,
    Box,
    ColorImage,
    DetectorFrame,
    DifferenceImage,
    DifferenceImageTemplateInfo,
    Image,
    Mask,
    MaskedImage,
    MaskPlane,
    MaskSchema,
    ObservationSummaryStats,
    Polygon,
    SkyProjection,
    TractFrame,
    VisitImage,
)
from lsst.images.cameras import (
    Amplifier,
    AmplifierCalibrations,
    CameraFrameSetSerializationModel,
    Detector,
    DetectorAttributes,
    DetectorType,
    Orientation,
    ReadoutCorner,
)
from lsst.images.cells import (
    CellCoadd,
    CellField,
    CellGrid,
    CellGridBounds,
    CellPointSpreadFunction,
    CoaddProvenance,
    PatchDefinition,
)
from lsst.images.convolution_kernels import ImageBasisConvolutionKernel
from lsst.images.fields import ChebyshevField, ProductField, SplineField, SumField
from lsst.images.psfs import GaussianPointSpreadFunction, PiffWrapper
from lsst.images.tests import make_random_sky_projection
from lsst.pipe.base import TaskMetadata
from lsst.pipe.base.tests.mocks import DynamicConnectionConfig, DynamicTestPipelineTaskConfig
from lsst.pipe.base.utils import RegionTimeInfo
from lsst.utils.packages import Packages

_BOX = Box.factory[10:50, 20:68]
_SCHEMA = MaskSchema([MaskPlane("BAD", "Bad pixel."), None, MaskPlane("CR", "Cosmic ray.")], dtype=np.uint8)


def _rng() -> np.random.Generator:
    return np.random.default_rng(42)


def make_sky_projection(box: Box = _BOX) -> SkyProjection[Any]:
    """Make a projection of a detector, with a random pointing."""
    return make_random_sky_projection(
        _rng(), DetectorFrame(instrument="Cam", visit=7, detector=3, bbox=box), box
    )


def _image(box: Box = _BOX, **kwargs: Any) -> Image:
    array = _rng().normal(size=box.shape).astype(np.float32)
    array.flat[0] = np.nan
    return Image(array, bbox=box, **kwargs)


def _mask(box: Box = _BOX) -> Mask:
    array = _rng().integers(0, 8, size=(*box.shape, 1), dtype=np.uint8) & np.uint8(0b101)
    return Mask(array, schema=_SCHEMA, bbox=box)


def _masked_image() -> MaskedImage:
    image = _image(unit=u.nJy, sky_projection=make_sky_projection())
    return MaskedImage(
        image, mask=_mask(), variance=_image(unit=u.nJy**2), metadata={"EXPTIME": 30.0, "OK": True}
    )


def _chebyshev(box: Box = _BOX, unit: Any = None) -> ChebyshevField:
    return ChebyshevField(box, _rng().normal(size=(3, 4)), unit=unit)


def _fields() -> list[Any]:
    y, x = (np.linspace(a.start, a.stop - 1, 6) for a in (_BOX.y, _BOX.x))
    spline = SplineField(_BOX, _rng().normal(size=(6, 6)), y=y, x=x, unit=u.nJy)
    cheby = _chebyshev(unit=u.nJy)
    return [cheby, spline, SumField([cheby, spline]), ProductField([cheby, _chebyshev()])]


def _backgrounds() -> BackgroundMap:
    return BackgroundMap(
        [Background("a", _chebyshev(unit=u.nJy), "first"), Background("b", _fields()[1])], "b"
    )


def _detector() -> Detector:
    frames = starlink.Ast.FrameSet(
        starlink.Ast.Frame(2, "Ident=FOCAL_PLANE,Domain=FOCAL_PLANE,Unit(1)=mm,Unit(2)=mm")
    )
    angles = starlink.Ast.Frame(2, "Ident=FIELD_ANGLE,Domain=FIELD_ANGLE,Unit(1)=rad,Unit(2)=rad")
    frames.addframe(1, starlink.Ast.ZoomMap(2, 1.1e-4), angles)
    pixels = starlink.Ast.Frame(
        2, "Ident=DETECTOR_003,Domain=PIXELS,Bottom(1)=0,Top(1)=48,Bottom(2)=0,Top(2)=40"
    )
    frames.addframe(1, starlink.Ast.MatrixMap([[0.1, 0.7], [-0.7, 0.1]]), pixels)
    text = str(frames)
    model = CameraFrameSetSerializationModel(instrument="Cam", ast=text)
    calibrations = AmplifierCalibrations(
        gain=1.5,
        read_noise=4.0,
        saturation=6e4,
        suspect_level=np.nan,
        linearity_coefficients=np.array([0.0, np.nan]),
        linearity_type="None",
    )
    attributes = DetectorAttributes(
        name="R00",
        id=3,
        type=DetectorType.SCIENCE,
        serial="x1",
        bbox=_BOX,
        orientation=Orientation(focal_plane_x=1.0, focal_plane_y=2.0, focal_plane_z=0.0, yaw=0.1 * u.rad),
        pixel_size=0.01,
        physical_type="CCD",
    )
    amplifier = Amplifier(
        name="A", bbox=_BOX, readout_corner=ReadoutCorner.LL, nominal_calibrations=calibrations
    )
    frames = model.deserialize(None)  # type: ignore[arg-type]
    return Detector(attributes, [amplifier], frames, visit=7)


def _observation() -> ObservationInfo:
    return ObservationInfo(
        instrument="Cam",
        physical_filter="r_1",
        exposure_time=30.0 * u.s,
        datetime_begin=astropy.time.Time("2026-01-02T03:04:05", scale="tai"),
        location=EarthLocation.from_geodetic(-70.7 * u.deg, -30.2 * u.deg, 2650 * u.m),
        tracking_radec=SkyCoord(12.0 * u.deg, -30.0 * u.deg),
        detector_num=3,
    )


def _stats() -> ObservationSummaryStats:
    return ObservationSummaryStats(psfSigma=1.7, ra=12.0, dec=-30.0)


def _piff() -> PiffWrapper:
    import galsim
    import piff

    rng = galsim.BaseDeviate(5)
    stars = []
    for x in (100.0, 500.0, 900.0):
        for y in (100.0, 500.0, 900.0):
            star = piff.Star.makeTarget(x=x, y=y, scale=1.0, stamp_size=19)
            profile = galsim.Gaussian(sigma=1.8 + 1e-4 * x).shear(g1=0.02)
            profile.drawImage(star.image, center=star.image_pos, method="no_pixel")
            star.image.addNoise(galsim.GaussianNoise(rng, sigma=1e-6))
            stars.append(star)
    model = piff.PixelGrid(scale=1.0, size=11)
    psf = piff.SimplePSF(model, piff.BasisPolynomial(order=1), max_iter=3)
    psf.fit(stars, wcs={0: galsim.PixelScale(1.0)}, pointing=None)
    return PiffWrapper(psf, _BOX, 11)


def make_visit_image(box: Box = _BOX, cls: type[VisitImage] = VisitImage, **kwargs: Any) -> VisitImage:
    """Make an image that has every component."""
    return cls(
        _image(box, unit=u.nJy, sky_projection=make_sky_projection(box)),
        mask=_mask(box),
        variance=_image(box, unit=u.nJy**2),
        bounds=Polygon(x_vertices=[22.0, 60.0, 55.0], y_vertices=[12.0, 14.0, 40.0]),
        obs_info=_observation(),
        summary_stats=_stats(),
        photometric_scaling=_chebyshev(box, u.nJy / u.adu),
        psf=GaussianPointSpreadFunction(1.7, box, 21),
        detector=_detector(),
        aperture_corrections={"base": _chebyshev(box)},
        backgrounds=_backgrounds(),
        band="r",
        metadata={"EXPTIME": 30.0, "OBJECT": "field"},
        **kwargs,
    )


def _kernel() -> ImageBasisConvolutionKernel:
    return ImageBasisConvolutionKernel(_rng().normal(size=(2, 5, 5)), [_chebyshev(), _chebyshev()])


def _difference_image() -> DifferenceImage:
    template = DifferenceImageTemplateInfo(
        skymap="sky",
        tract=1,
        patch=2,
        dataset_id=uuid.UUID(int=5),
        dataset_run="run",
        bounds=Polygon(x_vertices=[22.0, 60.0, 55.0], y_vertices=[12.0, 14.0, 40.0]),
        psf_shape_xx=1.0,
        psf_shape_yy=2.0,
        psf_shape_xy=0.5,
        psf_shape_flag=False,
    )
    image = make_visit_image(cls=DifferenceImage, kernel=_kernel(), templates=[template])
    assert isinstance(image, DifferenceImage)
    return image


_GRID = CellGrid(bbox=Box.factory[0:40, 0:60], cell_shape=YX(20, 20))
_CELLS = CellGridBounds(grid=_GRID, bbox=_GRID.bbox)


def _cell_psf() -> CellPointSpreadFunction:
    return CellPointSpreadFunction(_rng().normal(size=(2, 3, 7, 7)), _CELLS)


def _provenance() -> CoaddProvenance:
    inputs = CoaddProvenance.make_empty_input_table(2)
    contributions = CoaddProvenance.make_empty_contribution_table(3)
    for table in (inputs, contributions):
        table["instrument"] = astropy.table.Column(["Cam"] * len(table), dtype=object)
        table["visit"] = np.arange(len(table), dtype=np.uint64)
        table["detector"] = np.uint16(3)
    inputs["physical_filter"] = astropy.table.Column(["r_1", "r_2"], dtype=object)
    corners = {"x_vertices": [1.0, 9.0, 5.0], "y_vertices": [1.0, 2.0, 8.0]}
    inputs["polygon"] = astropy.table.Column([Polygon(**corners), Polygon(**corners)], dtype=object)
    return CoaddProvenance(inputs, contributions)


def _cell_coadd() -> CellCoadd:
    frame = TractFrame(skymap="sky", tract=1, bbox=_GRID.bbox)
    return CellCoadd(
        _image(_GRID.bbox, unit=u.nJy, sky_projection=make_random_sky_projection(_rng(), frame, _GRID.bbox)),
        mask=_mask(_GRID.bbox),
        variance=_image(_GRID.bbox, unit=u.nJy**2),
        mask_fractions={"BAD": _image(_GRID.bbox)},
        noise_realizations=[_image(_GRID.bbox, unit=u.nJy)],
        band="r",
        psf=_cell_psf(),
        aperture_corrections={"base": CellField(_CELLS, _rng().normal(size=(2, 3)))},
        patch=PatchDefinition(id=4, index=YX(0, 1), inner_bbox=_GRID.bbox, cells=_GRID),
        provenance=_provenance(),
        backgrounds=_backgrounds(),
    )


def _table(cls: type[astropy.table.Table] = astropy.table.Table) -> astropy.table.Table:
    n = 300
    table = cls(meta={"origin": ["a", "b"], "n": 1})
    table["id"] = astropy.table.Column(np.arange(n), description="Identifier.", meta={"ucd": "meta.id"})
    table["flux"] = astropy.table.Column(_rng().normal(size=n).astype(">f4"), unit=u.nJy, format="%.3f")
    table["name"] = [f"s{i}" for i in range(n)]
    table["any"] = astropy.table.Column([None, {"a": 1}, *range(n - 2)], dtype=object)
    table["image"] = _rng().normal(size=(n, 3, 2))
    table["masked"] = astropy.table.MaskedColumn(
        np.arange(n, dtype=np.int16), mask=np.arange(n) % 3 == 0, fill_value=-9, unit=u.s
    )
    table["no mask"] = astropy.table.MaskedColumn(np.arange(n), description="Nothing masked.")
    table["when"] = astropy.time.Time(60000.0 + np.arange(n) / 7, format="mjd", scale="tai")
    table["coord"] = SkyCoord(np.linspace(0, 9, n) * u.deg, np.linspace(-9, 9, n) * u.deg)
    table["visited"] = astropy.time.Time(
        Masked(np.arange(n) + 60000.0, mask=np.arange(n) % 2 == 0), format="mjd"
    )
    table["when"].info.description = "Mid-exposure."
    table.primary_key = ("id",)
    return table


def _qtable() -> astropy.table.QTable:
    table = _table(astropy.table.QTable)
    table["angle"] = np.linspace(0, 1, len(table)) * u.deg
    table["angle"].info.description = "An angle."
    table["angle"].info.meta = {"ucd": "pos"}
    table["uncertain"] = Masked(np.linspace(0, 1, len(table)) * u.deg, mask=np.arange(len(table)) % 2 == 0)
    return table


def _arrow() -> pa.Table:
    table = pa.table(
        {
            "i": pa.array(range(500)),
            "f": pa.array([None if i % 7 == 0 else i / 3 for i in range(500)]),
            "s": pa.array([f"string {i}" for i in range(500)]),
            "l": pa.array([[i, i + 1] for i in range(500)]),
            "d": pa.array(["a", "b"] * 250).dictionary_encode(),
        },
        metadata={"origin": "here"},
    )
    return pa.concat_tables([table, table.slice(13, 100)])


def _frame() -> Any:
    import pandas as pd

    frame = pd.DataFrame(
        {
            "i": np.arange(300),
            "f": _rng().normal(size=300),
            "g": np.zeros(300),
            "s": [f"s{i}" for i in range(300)],
        },
        index=pd.Index(np.arange(300)[::-1], name="key"),
    )
    frame["c"] = pd.Categorical(["a", "b", "c"] * 100)
    frame["t"] = pd.date_range("2026-01-01", periods=300, tz="UTC")
    frame["n"] = pd.array([1, None, 3] * 100, dtype="Int64")
    frame.attrs["origin"] = "here"
    return frame


def _frame_columns() -> Any:
    import pandas as pd

    return [_frame().columns, pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["x", "y"])]


def _frame_schema() -> Any:
    return parquet.DataFrameSchema(_frame().iloc[:0])


def _log_records() -> ButlerLogRecords:
    record = logging.LogRecord(
        "lsst.task", logging.WARNING, "file.py", 12, "%s of %d", ("one", 2), None, "run"
    )
    record.MDC = {"LABEL": "isr"}
    return ButlerLogRecords.from_records([record])  # type: ignore[list-item]


def _metadata() -> TaskMetadata:
    metadata = TaskMetadata()
    metadata["isr.value"] = 1.5
    metadata.add("isr.names", "a")
    metadata.add("isr.names", "b")
    metadata["isr.nan"] = float("nan")
    return metadata


def _config() -> Any:
    config = DynamicTestPipelineTaskConfig()
    config.dimensions = ["visit"]
    config.inputs["i"] = DynamicConnectionConfig(dataset_type_name="raw", dimensions=["visit"])
    return config


def _map() -> Any:
    import healsparse

    sparse = healsparse.HealSparseMap.make_empty(32, 512, np.float32, metadata={"A": 1})
    sparse[np.arange(2000)] = np.arange(2000, dtype=np.float32)
    return sparse


def _figure() -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 2))
    figure.subplots().plot([1, 2, 3], [3, 1, 2])
    return figure


def _region_time() -> RegionTimeInfo:
    circle = lsst.sphgeom.Circle(lsst.sphgeom.UnitVector3d(1, 2, 3), lsst.sphgeom.Angle(0.1))
    return RegionTimeInfo(region=circle, timespan=_timespans()[0])


def _timespans() -> list[Timespan]:
    begin = astropy.time.Time("2026-01-02T03:04:05", scale="tai")
    return [
        Timespan(begin, begin + 3.0 * u.s),
        Timespan(None, begin),
        Timespan(None, None),
        Timespan.makeEmpty(),
    ]


def _columns() -> dict[str, np.ndarray]:
    return {"a": np.arange(900.0), "b": np.arange(900)[::-1], "s": np.array(["x", "yy"] * 450)}


def _structured() -> np.ndarray:
    array = np.zeros(200, dtype=[("i", "<i8"), ("v", ">f4", (3,)), ("s", "U5")])
    array["i"] = np.arange(200)
    array["s"] = "né"
    return array


SAMPLES: dict[str, Callable[[], list[Any]]] = {
    "ArrowAstropy": lambda: [_table()],
    "ArrowAstropySchema": lambda: [parquet.ArrowAstropySchema(_qtable())],
    "ArrowColumnList": lambda: [["a", "b"], []],
    "ArrowNumpy": lambda: [_structured()],
    "ArrowNumpyDict": lambda: [_columns()],
    "ArrowNumpySchema": lambda: [parquet.ArrowNumpySchema(_structured().dtype)],
    "ArrowSchema": lambda: [_arrow().schema],
    "ArrowTable": lambda: [_arrow(), _arrow().slice(5, 7)],
    "AstropyQTable": lambda: [_qtable()],
    "AstropyTable": lambda: [_table(), astropy.table.Table(), astropy.table.Table(_table(), masked=True)],
    "AstropyUnit": lambda: [u.nJy, u.nJy**2 / u.s, u.dimensionless_unscaled],
    "BackgroundMap": lambda: [_backgrounds()],
    "Bounds": lambda: [_BOX, _CELLS, Polygon(x_vertices=[22.0, 60.0, 55.0], y_vertices=[12.0, 14.0, 40.0])],
    "BoxV2": lambda: [_BOX],
    "ButlerLogRecords": lambda: [_log_records()],
    "CellCoadd": lambda: [_cell_coadd()],
    "CellCoaddProvenance": lambda: [_provenance()],
    "CellPointSpreadFunction": lambda: [_cell_psf()],
    "ColorImage": lambda: [
        ColorImage(
            _rng().integers(0, 255, size=(*_BOX.shape, 3), dtype=np.uint8),
            bbox=_BOX,
            sky_projection=make_sky_projection(),
        )
    ],
    "Config": lambda: [_config()],
    "ConvolutionKernel": lambda: [_kernel()],
    "DataFrame": lambda: [_frame()],
    "DataFrameIndex": lambda: _frame_columns(),
    "DataFrameSchema": lambda: [_frame_schema()],
    "DetectorV2": lambda: [_detector()],
    "DifferenceImage": lambda: [_difference_image()],
    "HealSparseCoverage": lambda: [_map()._cov_map],
    "HealSparseMap": lambda: [_map()],
    "ImageField": lambda: _fields(),
    "ImageV2": lambda: [
        _image(),
        _image(unit=u.adu, sky_projection=make_sky_projection()).absolute[12:20, 30:44],
    ],
    "MaskV2": lambda: [_mask()],
    "MaskedImageV2": lambda: [_masked_image()],
    "NumpyArray": lambda: [
        _rng().normal(size=(30, 40)),
        _structured(),
        np.array([None, "a", 3.0], dtype=object),
    ],
    "ObservationInfo": lambda: [_observation()],
    "ObservationSummaryStats": lambda: [_stats()],
    "Packages": lambda: [Packages({"python": "3.13", "numpy": "2"}), Packages.fromSystem()],
    "Plot": lambda: [_figure()],
    "PointSpreadFunction": lambda: [GaussianPointSpreadFunction(1.7, _BOX, 21), _cell_psf(), _piff()],
    "RegionTimeInfo": lambda: [_region_time()],
    "SkyProjection": lambda: [make_sky_projection()],
    "StructuredDataDict": lambda: [{"a": [1, 2.5, None, float("inf")], "b": {"c": "d", 1: (2, 3)}}],
    "StructuredDataList": lambda: [[1, "two", {"three": [3]}, b"4" * 100_000]],
    "TaskMetadata": lambda: [_metadata()],
    "Thumbnail": lambda: [_rng().integers(0, 255, size=(16, 16, 3), dtype=np.uint8)],
    "Timespan": lambda: _timespans(),
    "Transform": lambda: [make_sky_projection().pixel_to_sky_transform],
    "VisitImage": lambda: [make_visit_image()],
    "int": lambda: [0, -(2**70)],
}
