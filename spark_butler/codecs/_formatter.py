"""Fallback codec, which encodes a dataset as a datastore's file.  Runs in workers and children."""

from __future__ import annotations

__all__ = ["FormatterFallback"]

import contextlib
import pickle
import tempfile
from pathlib import Path
from typing import Any, Self

from lsst.daf.butler import (
    DatasetRef,
    FileDescriptor,
    Formatter,
    FormatterFactory,
    FormatterV1inV2,
    FormatterV2,
    Location,
    QuantumBackedButler,
)

from .._daf_butler import file_datastores
from ..errors import CodecError


class FormatterFallback:
    """A codec that writes and reads a private file with the formatter of a datastore."""

    def __init__(self, factory: FormatterFactory, ref: DatasetRef):
        self._factory = factory
        self._ref = ref

    @classmethod
    def from_butler(cls, butler: QuantumBackedButler, ref: DatasetRef) -> Self | None:
        """Return the fallback for a dataset in the datastore of a butler.

        Parameters
        ----------
        butler
            Butler of the group.
        ref
            The dataset, with the storage class it has in the repository.

        Returns
        -------
        formatter
            The fallback; `None` if the datastore writes no files of this type.
        """
        for datastore in file_datastores(butler):
            with contextlib.suppress(KeyError):
                datastore.formatterFactory.getFormatterClass(ref)
                return cls(datastore.formatterFactory, ref)
        return None

    def _make(self, root: str, name: str) -> FormatterV2:
        storage_class = self._ref.datasetType.storageClass
        descriptor = FileDescriptor(Location(root, name), storageClass=storage_class)
        formatter = self._factory.getFormatter(self._ref, descriptor, dataId=self._ref.dataId, ref=self._ref)
        if not isinstance(formatter, Formatter):
            return formatter
        return FormatterV1inV2(
            descriptor,
            ref=self._ref,
            formatter=formatter,
            write_parameters=formatter.write_parameters,
            write_recipes=formatter.write_recipes,
        )

    def to_parts(self, obj: Any) -> tuple[str, pickle.PickleBuffer]:
        """Write a dataset; return the file's name, whose extension the formatter needs, and its content."""
        with tempfile.TemporaryDirectory(prefix="spark-butler-") as root:
            self._make(root, "dataset").write(obj)
            files = [path for path in Path(root).rglob("*") if path.is_file()]
            if len(files) != 1:
                raise CodecError(
                    f"The formatter of dataset type {self._ref.datasetType.name!r} wrote {len(files)} files,"
                    " expected 1."
                )
            return files[0].name, pickle.PickleBuffer(files[0].read_bytes())

    def from_parts(self, name: str, content: memoryview) -> Any:
        """Read a dataset from the name and the content of its file."""
        with tempfile.TemporaryDirectory(prefix="spark-butler-") as root:
            Path(root, name).write_bytes(content)
            obj = self._make(root, name).read(expected_size=content.nbytes)
        return self._ref.datasetType.storageClass.coerce_type(obj)
