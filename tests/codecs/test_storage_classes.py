"""Every storage class of the default butler configuration goes through its codec and comes back exactly."""

from __future__ import annotations

import io
from typing import Any

import pytest
from lsst.daf.butler import StorageClassFactory
from lsst.daf.butler._storage_class import StorageClassConfig
from lsst.images.tests import assert_masked_images_equal, assert_visit_images_equal

from spark_butler.codecs import check_storage_class, copy_object, decode, encode
from spark_butler.errors import PlanError
from tests.codecs.codec_compare import assert_independent, assert_same, join
from tests.support.codec_samples import SAMPLES

_NAMES = sorted(StorageClassConfig())

# What these come from besides the core: absent, their samples are skipped.
_EXTRAS = {
    "DataFrame": "pandas",
    "DataFrameIndex": "pandas",
    "DataFrameSchema": "pandas",
    "HealSparseCoverage": "healsparse",
    "HealSparseMap": "healsparse",
    "Plot": "matplotlib",
    "PointSpreadFunction": "piff",
}

_NOT_A_DATASET = {"ProvenanceQuantumGraph": "written by the engine itself, always stored"}

# Packages that are not on PyPI, or not in a form that imports there.
_NOT_ON_PYPI = (
    "lsst.afw",
    "lsst.analysis",
    "lsst.atmospec",
    "lsst.cell_coadds",
    "lsst.daf.base",
    "lsst.drp",
    "lsst.geom",
    "lsst.ip",
    "lsst.meas",
    "lsst.obs",
    "lsst.pipe.tasks",
    "lsst.scarlet",
    "lsst.skymap",
    "lsst.ts",
    "lsst.verify",
    "qp",
    "rail",
    "spectractor",
)


def _pytype_name(name: str) -> str:
    return StorageClassFactory().getStorageClass(name)._pytypeName


def _samples(name: str) -> list[Any]:
    if name in _EXTRAS:
        pytest.importorskip(_EXTRAS[name])
    return SAMPLES[name]()


def _importable(name: str) -> bool:
    try:
        StorageClassFactory().getStorageClass(name).pytype  # noqa: B018
    except ImportError:
        return False
    return True


def test_every_storage_class_has_a_sample_or_a_reason() -> None:
    for name in _NAMES:
        from_elsewhere = _pytype_name(name).startswith(_NOT_ON_PYPI)
        assert (name in SAMPLES) + (name in _NOT_A_DATASET) + from_elsewhere == 1, name


@pytest.mark.parametrize("name", _NAMES)
def test_a_storage_class_is_refused_only_if_its_type_cannot_be_imported(name: str) -> None:
    storage_class = StorageClassFactory().getStorageClass(name)
    if _importable(name):
        assert check_storage_class(storage_class) == "pickle"
    else:
        with pytest.raises(PlanError, match=f"storage class '{name}' can't be temporary"):
            check_storage_class(storage_class)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_round_trips_are_exact_and_independent(name: str) -> None:
    storage_class = StorageClassFactory().getStorageClass(name)
    for sample in _samples(name):
        encoded = encode(sample, storage_class)
        data = join(encoded)
        assert encoded.nbytes == len(data)
        first, second = decode(data, storage_class), decode(bytearray(data), storage_class)
        copy = copy_object(sample, storage_class)
        if name == "Plot":
            _assert_same_figures(sample, first)
            continue
        for other in (first, second, copy):
            assert_same(sample, other)
            assert_independent(sample, other)
        assert_independent(first, second)


def _assert_same_figures(a: Any, b: Any) -> None:
    drawn = []
    for figure in (a, b):
        figure.savefig(file := io.BytesIO(), format="rgba")
        drawn.append(file.getvalue())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("MaskedImageV2", assert_masked_images_equal),
        ("VisitImage", assert_visit_images_equal),
        ("DifferenceImage", assert_visit_images_equal),
        ("CellCoadd", assert_masked_images_equal),
    ],
)
def test_images_are_equal_by_their_own_comparison(name: str, check: Any) -> None:
    storage_class = StorageClassFactory().getStorageClass(name)
    (sample,) = SAMPLES[name]()
    check(decode(join(encode(sample, storage_class)), storage_class), sample)
