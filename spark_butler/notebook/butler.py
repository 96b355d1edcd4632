"""Butler for notebooks, whose queries and pipelines run on Spark.  Runs in the driver."""

from __future__ import annotations

__all__ = ["SparkButler"]

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Unpack, cast

from lsst.daf.butler import Butler
from lsst.daf.butler.utils import has_globs
from lsst.resources import ResourcePath

from ..driver.context import make_worker_context
from ..errors import OptionsError, StaysHereError, UserError
from ..planning.plan import Plan
from ..report.live_table import ReportPage
from ..repository.checks import check_repository, check_writeable, store_roots
from ..repository.query import find_data_ids, find_output_types
from ..run import PreparedRun, prepare
from ..spark._pyspark import hide_task_errors
from ..spark.preflight import check_workers
from ..spark.session import check_session, make_session
from ..text import best_effort
from ..worker.function_butler import DataIdContext
from .data_ids import DataIds
from .results import Puts
from .run import Run
from .run_arguments import (
    PipelineLike,
    RunArguments,
    in_words_of_python,
    make_notebook_request,
    with_run_arguments,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)


class SparkButler:
    """A Butler repository whose data IDs and pipelines Spark processes.

    Parameters
    ----------
    repo
        Address or alias of the repository.
    collections
        Collections to search, and the input of runs.
    spark
        A Spark session; by default the active one, or a new one with the
        settings that workers need, of the Spark that is installed or that
        ``SPARK_HOME`` names.

    Raises
    ------
    spark_butler.errors.UserError
        Raised if the repository can't be reached or Spark can't be used.

    Examples
    --------
    >>> butler = SparkButler(repo, collections="SimCam/defaults", spark=spark)
    >>> raws = butler.data_ids("raw", where="exposure.observation_type = 'science'")
    >>> sky = raws.map(lambda b, d: (d["detector"], float(np.median(b.get("raw", d).array)))).collect()
    >>> len(sky)
    4
    """

    def __init__(
        self,
        repo: str | os.PathLike[str] | ResourcePath,
        collections: str | Sequence[str] = (),
        *,
        spark: SparkSession | None = None,
    ):
        if not isinstance(repo, str | os.PathLike | ResourcePath):
            raise OptionsError(f"repo is {repo}; expected the address or alias of a Butler repository.")
        self._repo = str(repo)
        check_repository(self._repo)
        self._collections = _split(collections)
        if has_globs(self._collections):
            raise OptionsError(
                f"collections is {', '.join(self._collections)}; expected names, in the order of the search "
                "(data_ids() takes patterns, too)."
            )
        self._butler = Butler.from_config(
            self._repo, collections=list(self._collections) or None, writeable=False
        )
        if spark is not None:
            check_session(spark)
        self._session = spark if spark is not None else make_session()
        # A notebook shows the error of a function once, without Spark's copies.
        with best_effort("Can't set the log level of Spark", level=logging.DEBUG):
            hide_task_errors()
        self._checked: set[str] | None = None
        _register_source(self._session)

    def __repr__(self) -> str:
        return f"<SparkButler of {self._repo!r}, collections {', '.join(self._collections) or 'none'}>"

    def __reduce__(self) -> NoReturn:
        raise StaysHereError("Functions for workers can't use the SparkButler; they get a butler b.")

    @property
    def butler(self) -> Butler:
        """A plain, read-only butler of the repository, for use here."""
        self._butler.registry.refresh()
        return self._butler

    @property
    def spark(self) -> SparkSession:
        """The Spark session."""
        return self._session

    def data_ids(  # noqa: PLR0913
        self,
        dataset_type: str,
        *,
        where: str = "",
        bind: Mapping[str, Any] | None = None,
        also: str | Sequence[str] = (),
        collections: str | Sequence[str] = (),
        limit: int | None = None,
        outputs: Sequence[str] | Mapping[str, str] = (),
        output_run: str | None = None,
        clobber_outputs: bool = False,
        partitions: int | None = None,
    ) -> DataIds:
        """Return the sorted data IDs of a dataset type, whose functions run on Spark.

        Parameters
        ----------
        dataset_type
            Name of the dataset type.
        where
            Expression that selects data IDs, as in ``butler query-datasets``.
        bind
            Values of names in the expression.
        also
            Further dataset types that functions read: for each data ID, the
            datasets that go with it (calibrations by their validity,
            catalogs by their place on the sky).
        collections
            Collections to search instead of those of this butler; or patterns
            of their names (``"u/me/*"``), which must lead to one dataset for
            each data ID.
        limit
            Greatest number of data IDs.
        outputs
            Dataset types that functions put: names of registered ones; or
            a mapping of names to storage classes, for types to be registered
            with the dimensions of the data IDs.
        output_run
            RUN collection of the outputs.
        clobber_outputs
            Whether functions may replace outputs of an earlier query.
        partitions
            Number of partitions; by default four for each slot of Spark.

        Raises
        ------
        spark_butler.errors.UserError
            Raised if the query can't be used or selects nothing, or if the
            outputs can't be put.  Nothing is written.

        Examples
        --------
        >>> butler.data_ids("raw", where="detector = 1", also="bias", limit=2)
        <DataIds: 2 of 'raw' with bias, in 2 partitions>
        """
        resolved = find_data_ids(
            self.butler,
            dataset_type,
            also=_split(also),
            where=where,
            bind=bind,
            collections=_split(collections),
            limit=limit,
        )
        self._check_workers()
        types = find_output_types(
            self._butler,
            (outputs,) if isinstance(outputs, str) else outputs,
            output_run,
            resolved.data_ids,
            clobber=clobber_outputs,
        )
        if types:
            check_writeable(store_roots(self._butler))
        worker = make_worker_context(self._butler, [*resolved.dataset_types, *types.values()])
        context = DataIdContext(worker, resolved.dimensions, types, output_run or "")
        puts = Puts(self._repo, output_run or "", types)
        return DataIds(self._session, resolved, context, puts, partitions)

    @with_run_arguments
    def run(self, pipeline: PipelineLike | None = None, **options: Unpack[RunArguments]) -> Run:
        """Run a pipeline in the background.

        Parameters
        ----------
        pipeline
            Address of a pipeline file, a `~lsst.pipe.base.Pipeline`, or the
            class of a task, which may be defined in a cell.
        **options
            The options of ``spark-butler run``, by their names with
            underscores; ``where`` is the data query.

        Returns
        -------
        run
            The handle, as soon as the quantum graph and the output run exist.

        Raises
        ------
        spark_butler.errors.UserError
            Raised if the run is refused; nothing is written.

        Examples
        --------
        >>> run = butler.run(pipeline, output="u/me/isr", where="visit = 202601010102", memory="2GB")
        >>> run.wait().failures
        No failures.
        """
        from ..spark.backend import SparkBackend

        prepared = self._prepare(pipeline, options)
        backend = SparkBackend(self._session)
        return Run(
            prepared,
            backend,
            again=lambda changes: self.run(pipeline, **cast("RunArguments", {**options, **changes})),
            finish=backend.close,
        )

    @with_run_arguments
    def plan(self, pipeline: PipelineLike | None = None, **options: Unpack[RunArguments]) -> Plan:
        """Return the plan of a pipeline; nothing is written.

        Parameters
        ----------
        pipeline
            As for `run`.
        **options
            As for `run`.

        Returns
        -------
        plan
            The plan; its ``explain()`` returns a readable text.

        Examples
        --------
        >>> print(butler.plan(pipeline, output="u/me/plan", where="visit = 202601010101").explain())
        Plan: 2 quanta in 2 groups and 1 stage.
        ...
        """
        return self._prepare(pipeline, options, dry_run=True).plan

    def science_html(
        self, collection: str, *, where: str = "", file: str | os.PathLike[str] | None = None
    ) -> ReportPage:
        """Return a page about the science of a run of process_ccd, which a notebook shows.

        It shows the focal plane, PSF, astrometry, photometry and flags; ``str(page)`` is its HTML.

        Parameters
        ----------
        collection
            An output of process_ccd.
        where
            Expression that selects visits and detectors.
        file
            File to write the page to, as well.

        Raises
        ------
        spark_butler.errors.UserError
            Raised if the collection is not an output of process_ccd, or if the file can't be written.
        """
        from ..products.science_page import make_science_page

        html = make_science_page(self.butler, collection, where=where)
        return ReportPage(collection, html, os.fspath(file) if file is not None else None).save()

    def _prepare(
        self, pipeline: PipelineLike | None, options: Mapping[str, Any], *, dry_run: bool = False
    ) -> PreparedRun:
        """Check the arguments, and plan a run."""
        given = {"input": self._collections or None, **options}
        check_session(self._session)
        slots = int(self._session.sparkContext.defaultParallelism)
        start_workers = None if dry_run else self._check_workers
        try:
            request = make_notebook_request(self._repo, pipeline, given)
            return prepare(request, slots=lambda: slots, start_workers=start_workers, dry_run=dry_run)
        except UserError as exc:
            exc.args = (in_words_of_python(str(exc)),)
            raise

    def _check_workers(self, modules: Collection[str] = (), stores: Sequence[str] = ()) -> None:
        """Check that workers can run the engine and import modules, once for each module."""
        check_session(self._session)
        if self._checked is None or not self._checked.issuperset(modules):
            roots = stores or [str(root) for root in store_roots(self._butler)]
            check_workers(self._session.sparkContext, modules, roots)
            self._checked = (self._checked or set()).union(modules)


def _split(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return names that may be given as one string with commas."""
    if isinstance(names, str):
        return tuple(name.strip() for name in names.split(",") if name.strip())
    return tuple(names)


def _register_source(session: SparkSession) -> None:
    """Register the data source ``butler`` with pushed filters, where PySpark is new enough."""
    try:
        from ..spark.datasource import register
    except ImportError:
        logger.debug("This PySpark has no Python data sources.", exc_info=True)
        return
    register(session)
