"""Scenarios of chaos runs: repositories, graphs in files, and the outputs of ``pipetask run``."""

from __future__ import annotations

__all__ = ["BUCKET", "RUN", "SCENARIOS", "Copy", "Scenario", "Variant", "read_contents"]

import dataclasses
import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler, DatasetRef
from lsst.pipe.base.tests.mocks import MockDataset

from spark_butler.demo.night import ingest_night
from spark_butler.demo.s3server import EmbeddedS3
from spark_butler.demo.simulation import simulate
from tests.integration.chaos.chaos_servers import Registry
from tests.integration.chaos.chaos_tasks import MAX_SHUFFLE_BYTES
from tests.support.mock_night import fill_mock_night, task_text
from tests.support.stock import read_graph, run_pipetask
from tests.support.temporaries_tasks import digest

ROOT = Path(__file__).resolve().parents[3]

BUCKET = "chaos"

RUN = "u/chaos/run"


def _task(label: str, dimensions: Sequence[str], *lines: str) -> str:
    return task_text(label, "tests.integration.chaos.chaos_tasks.RecordingTask", dimensions, *lines)


_CCD = ("visit", "detector")

MOCK_PIPELINE = (
    "description: Narrow chains, a gather for each visit, one for each detector, one for all.\ntasks:"
    + _task(
        "isr",
        _CCD,
        'config.inputs["flat"] = C(dataset_type_name="flat", dimensions=["detector"])',
        'config.inputs["pointing"] = C(dataset_type_name="pointing", dimensions=["visit"])',
        'config.outputs["out"] = C(dataset_type_name="cleaned", dimensions=["visit", "detector"])',
        'config.init_outputs["schema"] = C(dataset_type_name="schema")',
    )
    + _task(
        "calibrate",
        _CCD,
        'config.init_inputs["schema"] = C(dataset_type_name="schema")',
        'config.inputs["in"] = C(dataset_type_name="cleaned", dimensions=["visit", "detector"])',
        'config.outputs["image"] = C(dataset_type_name="calibrated", dimensions=["visit", "detector"])',
        'config.outputs["sources"] = C(dataset_type_name="sources", dimensions=["visit", "detector"])',
    )
    + _task(
        "gather",
        ("visit",),
        'many = ["visit", "detector"]',
        'config.inputs["in"] = C(dataset_type_name="calibrated", dimensions=many, multiple=True)',
        'config.outputs["out"] = C(dataset_type_name="visit_out", dimensions=["visit"])',
    )
    + _task(
        "coadd",
        ("detector",),
        'many = ["visit", "detector"]',
        'config.inputs["sources"] = C(dataset_type_name="sources", dimensions=many, multiple=True)',
        'config.inputs["visits"] = C(dataset_type_name="visit_out", dimensions=["visit"], multiple=True)',
        'config.outputs["out"] = C(dataset_type_name="coadd_out", dimensions=["detector"])',
    )
    + _task(
        "final",
        ("instrument",),
        'config.inputs["in"] = C(dataset_type_name="coadd_out", dimensions=["detector"], multiple=True)',
        'config.outputs["out"] = C(dataset_type_name="final_out", dimensions=["instrument"])',
    )
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to execute the graph of a scenario."""

    name: str
    """Name of the variant."""

    arguments: tuple[str, ...]
    """Options of the command."""

    temporary: frozenset[str] = frozenset()
    """Names of the dataset types that are temporary."""

    weight: int = 1
    """Weight of the choice, compared with the others."""

    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Environment variables of the driver."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A repository with inputs and a graph."""

    name: str
    """Name of the scenario."""

    fill: Callable[[Path, Path, bool], Path]
    """Makes dimensions and inputs of a repository; returns the pipeline.  It is given a folder, and
    whether the graph is to be small."""

    inputs: str
    """Collection of the inputs."""

    query: str
    """Which data to process."""

    program: tuple[str, ...]
    """The command that runs graphs."""

    variants: tuple[Variant, ...]
    """Ways to execute the graph."""

    def prepare(self, folder: Path, server: EmbeddedS3, registry: Registry, *, small: bool = False) -> None:
        """Make the repository, the graph and the reference, unless they are there.

        Parameters
        ----------
        folder
            Where all scenarios are kept.
        server
            The object store, to which the environment points.
        registry
            Where the registry goes.
        small
            Whether to make a graph of fewer quanta.
        """
        mine = folder / self.name
        if (mine / "expected.json").exists():
            return
        shutil.rmtree(mine, ignore_errors=True)
        mine.mkdir(parents=True)
        server.make_bucket(BUCKET)
        repo = mine / "repo"
        registry.make(repo, f"s3://{BUCKET}/{self.name}/base/")
        pipeline = self.fill(repo, mine, small)
        graph = ("-p", pipeline, "-i", self.inputs, "--output-run", RUN, "-d", self.query)
        _pipetask("qgraph", "-b", repo, *graph, "-q", mine / "graph.qg")
        reference = self.copy(folder, "reference", server, registry)
        _pipetask("run", "-b", reference.repo, "-g", mine / "graph.qg", "--register-dataset-types")
        (mine / "quanta.json").write_text(json.dumps(_list_quanta(mine / "graph.qg")))
        contents = read_contents(reference.repo)
        (mine / "expected.json").write_text(
            json.dumps({str(dataset_id): content for dataset_id, content in contents.items()})
        )

    def graph(self, folder: Path) -> Path:
        """File of the graph."""
        return folder / self.name / "graph.qg"

    def quanta(self, folder: Path) -> dict[uuid.UUID, uuid.UUID]:
        """IDs of all quanta, each with that of its metadata."""
        content = json.loads((folder / self.name / "quanta.json").read_text())
        return {uuid.UUID(key): uuid.UUID(value) for key, value in content.items()}

    def expected(self, folder: Path, variant: Variant) -> dict[uuid.UUID, tuple[str, str, str]]:
        """Contents of all that a run must leave; see `read_contents`."""
        contents = json.loads((folder / self.name / "expected.json").read_text())
        return {
            uuid.UUID(key): (name, data_id, content)
            for key, (name, data_id, content) in contents.items()
            if name not in variant.temporary
        }

    def reference(self, folder: Path) -> Path:
        """Repository with what ``pipetask run`` made."""
        return folder / self.name / "repo-reference"

    def copy(self, folder: Path, name: str, server: EmbeddedS3, registry: Registry) -> Copy:
        """Make a copy of the repository, objects included."""
        repo = folder / self.name / f"repo-{name}"
        shutil.rmtree(repo, ignore_errors=True)
        registry.copy(folder / self.name / "repo", repo)
        config = repo / "butler.yaml"
        old, new = f"{self.name}/base/", f"{self.name}/{name}/"
        config.write_text(config.read_text().replace(old, new))
        # A datastore without a name is called after its root.
        registry.change(
            repo, f"UPDATE dataset_location SET datastore_name = replace(datastore_name, '{old}', '{new}')"
        )
        made = Copy(repo, registry, new, frozenset())
        client = server.client()
        made.remove_objects(server)
        keys = set()
        for key in list_keys(server, old):
            keys.add(new + key.removeprefix(old))
            client.copy_object(
                Bucket=BUCKET, Key=new + key.removeprefix(old), CopySource={"Bucket": BUCKET, "Key": key}
            )
        return dataclasses.replace(made, inputs=frozenset(keys))


@dataclasses.dataclass(frozen=True)
class Copy:
    """A copy of a scenario's repository, for one run."""

    repo: Path
    """Its root."""

    registry: Registry
    """Where its registry is."""

    prefix: str
    """Beginning of the names of its objects."""

    inputs: frozenset[str]
    """Names of the objects that were there before the run."""

    def registered(self) -> dict[uuid.UUID, str]:
        """Names of the objects of the output run that the repository knows, by ID of the dataset."""
        rows = self.registry.ask(self.repo, "SELECT dataset_id, path FROM file_datastore_records")
        return {
            uuid.UUID(dataset_id): self.prefix + path
            for dataset_id, path in rows
            if self.prefix + path not in self.inputs
        }

    def has_run(self) -> bool:
        """Whether the output run has been made."""
        return bool(self.registry.ask(self.repo, f"SELECT 1 FROM collection WHERE name = '{RUN}'"))

    def remove(self, server: EmbeddedS3) -> None:
        """Remove it, objects included."""
        self.remove_objects(server)
        self.registry.remove(self.repo)

    def remove_objects(self, server: EmbeddedS3) -> None:
        """Remove its objects."""
        server.remove_keys(BUCKET, list_keys(server, self.prefix))


def _list_quanta(file: Path) -> dict[str, str]:
    """Read the IDs of all quanta and of their metadata from a graph."""
    graph = read_graph(file)
    return {
        str(quantum_id): str(
            quantum.outputs[
                graph.pipeline_graph.tasks[
                    graph.quantum_only_xgraph.nodes[quantum_id]["task_label"]
                ].metadata_output.dataset_type_name
            ][0].id
        )
        for quantum_id, quantum in graph.build_execution_quanta().items()
    }


def list_keys(server: EmbeddedS3, prefix: str) -> list[str]:
    """Names of the objects that begin with a prefix."""
    return [key for key in server.list_keys(BUCKET, prefix) if not key.endswith("/")]


def read_contents(repo: Path) -> dict[uuid.UUID, tuple[str, str, str]]:
    """Read all datasets of the output run.

    Parameters
    ----------
    repo
        The repository.

    Returns
    -------
    contents
        Dataset type, data ID, and a digest of what must be the same in each
        run, by dataset ID.
    """
    with Butler.from_config(repo, writeable=False) as butler:
        refs = butler.query_all_datasets(RUN, find_first=False, limit=None)
        return {ref.id: (ref.datasetType.name, str(ref.dataId), _describe(butler, ref)) for ref in refs}


def _describe(butler: Butler, ref: DatasetRef) -> str:
    """Describe a dataset by a digest; whatever is wrong with reading it becomes the description."""
    try:
        content: Any = butler.get(ref)
    except Exception as exc:  # noqa: BLE001  (a finding, not an end of the suite)
        return f"unreadable: {type(exc).__name__}: {exc}"
    name = ref.datasetType.name
    if isinstance(content, MockDataset):
        content = content.model_dump(mode="json")
    elif name.endswith("_metadata"):
        content = content["quantum"].get("caveats", 0)
    elif name.endswith("_config"):
        content = content.toDict()
    elif name.endswith("_log") or name == "packages":
        # A log without a line would be none.
        content = [type(content).__name__, bool(len(content))]
    return hashlib.sha256(json.dumps(digest(content), sort_keys=True, default=str).encode()).hexdigest()[:16]


def _pipetask(*arguments: str | Path) -> None:
    run_pipetask(*arguments, paths=(ROOT,))


def _fill_mock(repo: Path, folder: Path, small: bool) -> Path:
    """Register fourteen visits of seventeen detectors, or fewer, and make mock inputs."""
    pipeline = folder / "pipeline.yaml"
    pipeline.write_text(MOCK_PIPELINE)
    visits, detectors = (6, 7) if small else (14, 17)
    fill_mock_night(repo, pipeline, visits=visits, detectors=detectors, inputs=("flat", "pointing"))
    return pipeline


def _fill_process_ccd(repo: Path, folder: Path, small: bool) -> Path:
    """Simulate and ingest two visits of two small detectors."""
    night = simulate(folder / "night", visits=2, detectors=2, size=384, seed=3)
    with Butler.from_config(repo, writeable=True) as butler:
        ingest_night(butler, night)
    return ROOT / "conf" / "pipelines" / "process_ccd.yaml"


def _variant(
    name: str,
    *arguments: str,
    temporary: tuple[str, ...] = (),
    weight: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Variant:
    chosen = [word for each in temporary for word in ("--temporary", each)]
    return Variant(name, (*chosen, *arguments), frozenset(temporary), weight, environment or {})


_MOCK = ("cleaned", "calibrated", "sources", "visit_out", "coadd_out")
_IMAGES = ("post_isr_image", "preliminary_visit_image", "preliminary_source", "detector_summary")

SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "mock",
            _fill_mock,
            "inputs",
            "instrument='Cam1'",
            ("spark-butler", "run"),
            (
                _variant("by visit", "--group-by", "visit", temporary=_MOCK[:1], weight=3),
                _variant("chains", "--group-by", "fused", temporary=_MOCK[:1], weight=2),
                _variant("shuffled", "--group-by", "detector", temporary=_MOCK[:2], weight=3),
                _variant("all shuffled", "--group-by", "detector", temporary=_MOCK, weight=3),
                _variant(
                    *("scratch", "--group-by", "detector"),
                    temporary=_MOCK[:2],
                    environment={MAX_SHUFFLE_BYTES: "1"},
                ),
                _variant("stored", "--group-by", "visit"),
            ),
        ),
        Scenario(
            "process_ccd",
            _fill_process_ccd,
            "SimCam/defaults",
            "instrument='SimCam'",
            ("spark-submit", str(ROOT / "jobs" / "process_ccd.py")),
            (
                _variant("fused", "--group-by", "fused", temporary=_IMAGES),
                _variant("shuffled", "--isolation", "quantum", temporary=_IMAGES),
                _variant("stored"),
            ),
        ),
    )
}
