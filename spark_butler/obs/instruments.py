"""One importable class for each instrument that a description names.

``spark_butler.obs.instruments.SimCam`` is the subclass of `YamlInstrument` that stands for SimCam.  Such
names are in the registry's instrument records and may be a pipeline's ``instrument:``.
"""

from __future__ import annotations

__all__: list[str] = []

import re

from .instrument import YamlInstrument, make_instrument_class


def __getattr__(name: str) -> type[YamlInstrument]:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,31}", name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return make_instrument_class(name)
