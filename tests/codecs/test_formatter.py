"""Objects that don't pickle go as the file that a datastore would write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lsst.daf.butler import (
    Butler,
    Config,
    DataCoordinate,
    DatasetRef,
    DatasetType,
    QuantumBackedButler,
    StorageClass,
    StorageClassFactory,
)
from lsst.images.tests import assert_visit_images_equal

from spark_butler.codecs import CodecError, FormatterFallback, copy_object, decode, encode
from tests.codecs.codec_compare import assert_independent, join
from tests.codecs.codec_types import OneWay, Secret, Writes
from tests.support.codec_samples import make_visit_image

_CLASSES = {
    name: {"pytype": "tests.codecs.codec_types.Secret"} for name in ("SecretV1", "SecretV2", "SecretNone")
}
_CONFIG = {
    "storageClasses": _CLASSES,
    "datastore": {
        "formatters": {
            "SecretV1": "tests.codecs.codec_types.SecretFormatterV1",
            "SecretV2": "tests.codecs.codec_types.SecretFormatter",
        }
    },
}

FindFormatter = Callable[[str], FormatterFallback | None]


@pytest.fixture(scope="module")
def find_formatter(tmp_path_factory: pytest.TempPathFactory) -> FindFormatter:
    """Find the formatter of a real repository for a storage class."""
    root = str(tmp_path_factory.mktemp("repo"))
    Butler.makeRepo(root, config=Config(_CONFIG))
    with Butler.from_config(root, writeable=True, run="run") as butler:
        universe = butler.dimensions

    def find(name: str) -> FormatterFallback | None:
        storage_class = StorageClassFactory().getStorageClass(name)
        ref = DatasetRef(
            DatasetType("thing", (), storage_class, universe=universe),
            DataCoordinate.make_empty(universe),
            run="run",
        )
        qbb = QuantumBackedButler.from_predicted(
            config=root,
            predicted_inputs=[],
            predicted_outputs=[ref.id],
            dimensions=universe,
            datastore_records={},
        )
        formatter = FormatterFallback.from_butler(qbb, ref)
        qbb.close()
        return formatter

    return find


def _storage_class(name: str) -> StorageClass:
    return StorageClassFactory().getStorageClass(name)


@pytest.mark.parametrize("name", ["SecretV1", "SecretV2"])
def test_object_that_does_not_pickle_uses_its_formatter(name: str, find_formatter: FindFormatter) -> None:
    formatter = find_formatter(name)
    secret = Secret(np.arange(5000.0))
    encoded = encode(secret, _storage_class(name), formatter=formatter)
    assert encoded.codec == "formatter"
    data = join(encoded)
    for other in (
        decode(data, _storage_class(name), formatter=formatter),
        copy_object(secret, _storage_class(name), formatter=formatter),
    ):
        assert type(other) is Secret
        assert np.array_equal(other.values, secret.values)
        assert_independent(secret, other)
    with pytest.raises(CodecError, match="no formatter was given"):
        decode(data, _storage_class(name))


def test_image_formatter_is_used(find_formatter: FindFormatter) -> None:
    formatter = find_formatter("VisitImage")
    assert formatter is not None
    image = make_visit_image()
    name, content = formatter.to_parts(image)
    assert_visit_images_equal(formatter.from_parts(name, content.raw()), image)


def test_datastore_without_formatter_offers_none(find_formatter: FindFormatter) -> None:
    assert find_formatter("SecretNone") is None
    with pytest.raises(CodecError, match="Secret of storage class 'SecretNone' .* cannot pickle a secret"):
        encode(Secret(np.zeros(3)), _storage_class("SecretNone"))
    with pytest.raises(CodecError, match="can't be copied: TypeError: cannot pickle a secret"):
        copy_object(Secret(np.zeros(3)), _storage_class("SecretNone"))


def test_object_that_does_not_unpickle_fails_its_producer() -> None:
    with pytest.raises(CodecError, match="there is no way back"):
        encode(OneWay(1), _storage_class("StructuredDataDict"))


def test_error_of_formatter_is_reported(find_formatter: FindFormatter) -> None:
    broken: Any = Secret(np.zeros(3))
    del broken.values
    with pytest.raises(CodecError, match="neither pickles nor can be written by its formatter: .*values"):
        encode(broken, _storage_class("SecretV2"), formatter=find_formatter("SecretV2"))


def test_an_object_that_writes_to_its_arrays_does_not_write_to_those_of_the_producer() -> None:
    original = Writes(np.arange(3000.0))
    other = decode(join(encode(original, _storage_class("StructuredDataDict"))), _storage_class("int"))
    assert np.array_equal(other.values, original.values)
    assert_independent(original, other)


def test_no_files_are_left_behind(
    find_formatter: FindFormatter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    copy_object(Secret(np.zeros(3)), _storage_class("SecretV2"), formatter=find_formatter("SecretV2"))
    assert not list(tmp_path.iterdir())
