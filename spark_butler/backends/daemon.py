"""The parent of all Python workers of an executor, with the middleware already imported.

Spark forks Python workers from a daemon.  With this module in
``spark.python.daemon.module`` the workers have everything imported when they
start, and share the memory of it.
"""

from __future__ import annotations

__all__ = ["main"]

import gc

from pyspark import daemon


def main() -> None:
    """Import what workers need, keep the garbage collector off it, and serve."""
    import lsst.images  # noqa: F401

    from .. import isolation  # noqa: F401

    # pyspark.daemon collects after each Spark task, which would go through all of this every time.
    gc.collect()
    gc.freeze()
    daemon.manager()


if __name__ == "__main__":
    main()
