"""Run Rubin pipelines on Apache Spark, with the Butler's datastore in an object store.

On the command line, use ``spark-butler run``, or ``spark-submit jobs/process_ccd.py``
on a cluster, with the options of ``pipetask run``.  In a notebook, a `SparkButler`
runs functions on data IDs, and pipelines, on Spark:

>>> from spark_butler import SparkButler
>>> butler = SparkButler(repo, collections="SimCam/defaults")
>>> raws = butler.data_ids("raw", where="exposure.observation_type = 'science'")
>>> levels = raws.map(lambda b, data_id: float(b.get("raw", data_id).array.mean())).collect()
>>> run = butler.run(pipeline, output="u/me/first-look", where="visit = 202601010101")
>>> run.wait().status
<RunStatus.SUCCEEDED: 'succeeded'>

Code that passes a graph executor to pipe_base can pass a `SparkGraphExecutor`:

>>> from lsst.daf.butler import Butler
>>> from lsst.pipe.base.separable_pipeline_executor import SeparablePipelineExecutor
>>> from spark_butler import SparkGraphExecutor
>>> plain = Butler.from_config(repo, collections=["SimCam/defaults"], run="u/me/graph", writeable=True)
>>> executor = SeparablePipelineExecutor(plain)
>>> graph = executor.build_quantum_graph(executor.make_pipeline(pipeline), "visit = 202601010101")
>>> executor.pre_execute_qgraph(graph, register_dataset_types=True)
>>> executor.run_pipeline(graph, graph_executor=SparkGraphExecutor(butler=plain))
>>> len(plain.query_datasets("isr_log", collections="u/me/graph"))
2

Workers have butlers without the registry.  The driver, this process, registers the
datasets that they write.
"""

from __future__ import annotations

__all__ = ["RunOptions", "SparkButler", "SparkGraphExecutor", "execute_graph", "make_session", "plan_graph"]

__version__ = "0.1.0"

from typing import TYPE_CHECKING

from ._lazy import lazy_names

if TYPE_CHECKING:
    from .driver.engine import execute_graph, plan_graph
    from .graph_executor import SparkGraphExecutor
    from .model.options import RunOptions
    from .notebook.butler import SparkButler
    from .spark.session import make_session

_MODULES = {
    "RunOptions": "model.options",
    "SparkButler": "notebook.butler",
    "SparkGraphExecutor": "graph_executor",
    "execute_graph": "driver.engine",
    "make_session": "spark.session",
    "plan_graph": "driver.engine",
}


__getattr__ = lazy_names(__name__, _MODULES)


def __dir__() -> list[str]:
    return __all__
