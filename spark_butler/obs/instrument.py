"""Instruments whose properties are in a `CameraDescription`."""

from __future__ import annotations

__all__ = ("ONE_TO_ONE", "YamlInstrument", "make_instrument_class")

import functools
from typing import ClassVar, Self

from lsst.daf.butler import DataId
from lsst.daf.butler.registry import Registry
from lsst.pipe.base import Instrument

from .camera.description import CameraDescription
from .formatters import RawFitsFormatter

ONE_TO_ONE = 0
"""Identifier of the only visit system: each science exposure is a visit."""


_CLASSES = "spark_butler.obs.instruments"
"""Module that has every instrument's class as an attribute."""


class YamlInstrument(Instrument):
    """An instrument that is described by a `CameraDescription`.

    Notes
    -----
    The registry holds a class for each instrument, which is made without arguments.  Hence each description
    has a subclass of its own, ``spark_butler.obs.instruments.NAME``, made on demand; it knows its name, and
    all but `register` works with that.  Only instances from `from_description` can register.
    """

    name: ClassVar[str] = ""
    _description: CameraDescription | None = None

    @classmethod
    def from_description(cls, description: CameraDescription) -> Self:
        """Return the described instrument, ready to be registered."""
        instrument = make_instrument_class(description.name)()
        instrument._description = description
        assert isinstance(instrument, cls)
        return instrument

    @classmethod
    def getName(cls) -> str:
        # Docstring inherited.
        if not cls.name:
            raise TypeError(
                f"{cls.__name__} stands for no instrument; use from_description, or "
                "spark_butler.obs.instruments.NAME"
            )
        return cls.name

    def getRawFormatter(self, dataId: DataId) -> type[RawFitsFormatter]:
        # Docstring inherited.
        return RawFitsFormatter

    def register(self, registry: Registry, *, update: bool = False) -> None:
        # Docstring inherited.
        description = self._description
        if description is None:
            raise TypeError(
                f"{self.getName()} was made without its description; use from_description to register"
            )
        instrument = {"instrument": description.name}
        with registry.transaction():
            registry.syncDimensionData(
                "instrument",
                {
                    "name": description.name,
                    "class_name": f"{type(self).__module__}.{type(self).__qualname__}",
                    "visit_max": description.visit_max,
                    "visit_system": ONE_TO_ONE,
                    "exposure_max": description.exposure_max,
                    "detector_max": max(detector.id for detector in description.detectors) + 1,
                },
                update=update,
            )
            for detector in description.detectors:
                record = {"id": detector.id, "full_name": detector.name, "purpose": detector.purpose}
                registry.syncDimensionData("detector", instrument | record, update=update)
            for item in (*description.filters, description.no_filter):
                record = {"name": item.name, "band": item.band}
                registry.syncDimensionData("physical_filter", instrument | record, update=update)


@functools.cache
def make_instrument_class(name: str) -> type[YamlInstrument]:
    """Return the class of an instrument, the same one each time."""
    return type(
        name, (YamlInstrument,), {"name": name, "__module__": _CLASSES, "__doc__": f"The {name} camera."}
    )
