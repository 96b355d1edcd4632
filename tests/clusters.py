"""The standalone Spark cluster of the tests, for scripts that put this folder on their path."""

from __future__ import annotations

__all__ = ["Cluster"]

from tests.support.clusters import Cluster
