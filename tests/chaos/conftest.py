"""The tests of the chaos suite import what it shares with others."""

from __future__ import annotations

import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]

sys.path[:0] = [str(_TESTS), str(_TESTS / "temporaries")]
