"""Types that don't pickle, and their formatters."""

from __future__ import annotations

__all__ = ["OneWay", "Secret", "SecretFormatter", "SecretFormatterV1"]

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from lsst.daf.butler import Formatter, FormatterV2
from lsst.resources import ResourcePath


class Secret:
    """Doesn't pickle."""

    def __init__(self, values: np.ndarray):
        self.values = values

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle a secret")


class OneWay:
    """Pickles, but doesn't come back."""

    def __init__(self, value: int):
        self.value = value

    def __setstate__(self, state: Any) -> NoReturn:
        raise RuntimeError("there is no way back")


class Writes:
    """Changes its array in place when it comes back."""

    def __init__(self, values: np.ndarray):
        self.values = values

    def __getstate__(self) -> np.ndarray:
        return self.values

    def __setstate__(self, state: np.ndarray) -> None:
        state += 0
        self.values = state


class SecretFormatter(FormatterV2):
    default_extension = ".npy"
    can_read_from_local_file = True

    def write_local_file(self, in_memory_dataset: Any, uri: ResourcePath) -> None:
        np.save(uri.ospath, in_memory_dataset.values)

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Any:
        assert Path(path).stat().st_size == expected_size
        return Secret(np.load(path))


class SecretFormatterV1(Formatter):
    extension = ".npy"

    def write(self, inMemoryDataset: Any) -> None:
        np.save(self.fileDescriptor.location.path, inMemoryDataset.values)

    def read(self, component: str | None = None) -> Any:
        return Secret(np.load(self.fileDescriptor.location.path))
