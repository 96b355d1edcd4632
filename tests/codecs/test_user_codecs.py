"""Users bring codecs, by a call or by an entry point."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lsst.daf.butler import StorageClass, StorageClassFactory

from spark_butler.codecs import (
    CodecError,
    _user_codecs,
    check_storage_class,
    copy_object,
    decode,
    encode,
    register_codec,
)
from spark_butler.errors import PlanError
from tests.codecs.codec_compare import assert_independent, join
from tests.codecs.codec_types import Secret


class SecretCodec:
    """Takes a secret to its array."""

    def to_parts(self, obj: Any, /) -> Any:
        return {"values": obj.values}

    def from_parts(self, parts: Any, /) -> Any:
        return Secret(parts["values"])


class ListCodec:
    """Takes a list to its reverse, so that one sees where it was at work."""

    def to_parts(self, obj: Any, /) -> Any:
        return tuple(obj)

    def from_parts(self, parts: Any, /) -> Any:
        return list(parts)[::-1]


@pytest.fixture(autouse=True)
def _fresh_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("_registered", "_by_type"):
        monkeypatch.setattr(_user_codecs, name, {})
    _user_codecs._entry_points.cache_clear()
    yield
    _user_codecs._entry_points.cache_clear()


@pytest.fixture
def provide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a distribution with entry points."""

    def install(lines: str) -> None:
        info = tmp_path / "user_codecs-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: user-codecs\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[spark_butler.codecs]\n{lines}\n")
        (tmp_path / "user_codecs.py").write_text(
            "import numpy as np\n"
            "from tests.codecs.codec_types import Secret\n"
            "class SecretCodec:\n"
            "    def to_parts(self, obj):\n"
            "        return {'values': obj.values}\n"
            "    def from_parts(self, parts):\n"
            "        return Secret(parts['values'])\n"
            "instance = SecretCodec()\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "user_codecs", raising=False)

    return install


def _get(name: str) -> StorageClass:
    return StorageClassFactory().getStorageClass(name)


def _check_secret(storage_class: StorageClass, codec: str) -> None:
    secret = Secret(np.arange(5000.0))
    encoded = encode(secret, storage_class)
    assert encoded.codec == codec
    assert any(np.shares_memory(secret.values, np.asarray(piece)) for piece in encoded.pieces())
    for other in (decode(join(encoded), storage_class), copy_object(secret, storage_class)):
        assert np.array_equal(other.values, secret.values)
        assert_independent(secret, other)


def test_type_codec_is_used_inside_containers() -> None:
    register_codec("tests.codecs.codec_types.Secret", SecretCodec())
    _check_secret(StorageClass("Secret", pytype=Secret), "tests.codecs.codec_types.Secret")
    assert check_storage_class(StorageClass("Secret", pytype=Secret)) == "tests.codecs.codec_types.Secret"
    inside = {"a": [Secret(np.arange(3.0))]}
    back = decode(join(encode(inside, _get("StructuredDataDict"))), _get("StructuredDataDict"))
    assert np.array_equal(back["a"][0].values, inside["a"][0].values)


def test_type_codec_is_found_by_public_name() -> None:
    from lsst.images import Box

    class BoxCodec:
        def to_parts(self, obj: Any, /) -> Any:
            return (
                obj.serialize().model_dump_json() if hasattr(obj.serialize(), "model_dump_json") else str(obj)
            )

        def from_parts(self, parts: Any, /) -> Any:
            return parts

    register_codec("lsst.images.Box", BoxCodec())
    assert check_storage_class(_get("BoxV2")) == "lsst.images.Box"
    assert isinstance(decode(join(encode(Box.factory[1:2, 3:4], _get("BoxV2"))), _get("BoxV2")), str)


def test_storage_class_codec_takes_precedence() -> None:
    register_codec("tests.codecs.codec_types.Secret", ListCodec())
    register_codec("SecretList", SecretCodec())
    _check_secret(StorageClass("SecretList", pytype=Secret), "SecretList")


def test_storage_class_codec_is_not_used_for_others() -> None:
    register_codec("StructuredDataList", ListCodec())
    assert decode(join(encode([1, 2], _get("StructuredDataList"))), _get("StructuredDataList")) == [2, 1]
    assert decode(join(encode([1, 2], _get("ArrowColumnList"))), _get("ArrowColumnList")) == [1, 2]


@pytest.mark.parametrize("value", ["user_codecs:SecretCodec", "user_codecs:instance"])
@pytest.mark.parametrize("name", ["tests.codecs.codec_types.Secret", "SecretByName"])
def test_codecs_are_found_by_entry_point(provide: Any, name: str, value: str) -> None:
    provide(f"{name} = {value}")
    storage_class = StorageClass("SecretByName", pytype=Secret)
    assert check_storage_class(storage_class) == name
    _check_secret(storage_class, name)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("user_codecs:missing", "can't be loaded"),
        ("absent_module:codec", "can't be loaded.*absent_module"),
        ("user_codecs:np", "expected an object with the methods to_parts and from_parts"),
    ],
)
def test_broken_entry_point_is_refused_before_the_run(provide: Any, value: str, message: str) -> None:
    provide(f"SecretByName = {value}")
    with pytest.raises(PlanError, match=message):
        check_storage_class(StorageClass("SecretByName", pytype=Secret))


def test_missing_codec_in_worker_raises_clear_error() -> None:
    storage_class = StorageClass("SecretList", pytype=Secret)
    register_codec("SecretList", SecretCodec())
    data = join(encode(Secret(np.zeros(3)), storage_class))
    _user_codecs._registered.clear()
    with pytest.raises(CodecError, match="codec 'SecretList', which this process doesn't have"):
        decode(data, storage_class)


_NOTEBOOK = """
import sys
import numpy as np
from lsst.daf.butler import StorageClass
from spark_butler.codecs import encode
class Defined:
    def __init__(self, values):
        self.values = values
    def total(self):
        return float(self.values.sum())
encoded = encode(Defined(np.arange(1000.0)), StorageClass("Defined", pytype=Defined))
sys.stdout.buffer.write(b"".join(encoded.pieces()))
"""


def test_types_of_a_notebook_are_decoded_in_other_processes() -> None:
    done = subprocess.run([sys.executable, "-c", _NOTEBOOK], capture_output=True, check=True)
    back = decode(bytearray(done.stdout), StorageClass("Defined"))
    assert back.total() == 499500.0
    assert back.values.flags.writeable
