"""Metadata and logs that are inside provenance graph files in a repository's datastore.

Runs in the driver.
"""

from __future__ import annotations

__all__ = ["PackedScan", "automatic_outputs", "check_destination", "find_packs", "open_pack"]

import contextlib
import dataclasses
import itertools
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import zstandard
from lsst.daf.butler import LimitedButler
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.pipe.base import automatic_connection_constants as acc
from lsst.pipe.base.quantum_graph import (
    PredictedDatasetModel,
    PredictedQuantumGraph,
    ProvenanceQuantumGraphReader,
)
from lsst.pipe.base.quantum_graph.formatter import ProvenanceFormatter
from lsst.resources import ResourcePath, ResourcePathExpression

from .._daf_butler import record_table
from .._pipe_base import (
    LOG_ADDRESS_INDEX,
    LOG_MB_NAME,
    METADATA_ADDRESS_INDEX,
    METADATA_MB_NAME,
    Address,
    MultiblockReader,
    ProvenanceQuantumInfo,
    quantum_datasets,
)
from ..datastore.files import file_datastores
from ..errors import OptionsError
from .scan import QuantumScan

_IDS_PER_QUERY = 500


@dataclasses.dataclass(frozen=True, slots=True)
class PackedScan:
    """Entry of a provenance graph file for a quantum that was tried."""

    dataset_ids: frozenset[uuid.UUID]
    """IDs of its metadata and, if its task keeps one, its log."""

    scan: QuantumScan
    """Its attempts."""


def check_destination(destination: ResourcePathExpression) -> None:
    """Check that a provenance graph can be written, before there is anything to write.

    Parameters
    ----------
    destination
        Where it is to go.

    Raises
    ------
    OptionsError
        Raised if it can't.
    """
    uri = ResourcePath(destination, forceDirectory=None)
    if uri.getExtension() != ".qg":
        raise OptionsError(f"The provenance graph {str(destination)!r} needs a name that ends in .qg.")
    if not uri.isLocal:
        return
    folder = Path(uri.ospath).parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or Path(uri.ospath).is_dir():
        raise OptionsError(f"The provenance graph {str(destination)!r} can't be written there.")


def automatic_outputs(graph: PredictedQuantumGraph, quantum_id: uuid.UUID) -> list[PredictedDatasetModel]:
    """Find the metadata and, if there is one, the log of a quantum.

    Parameters
    ----------
    graph
        The graph.
    quantum_id
        The quantum.
    """
    outputs = quantum_datasets(graph)[quantum_id].outputs
    names = (acc.METADATA_OUTPUT_CONNECTION_NAME, acc.LOG_OUTPUT_CONNECTION_NAME)
    return [dataset for name in names for dataset in outputs.get(name, ())]


def find_packs(butler: LimitedButler, dataset_ids: Iterable[uuid.UUID]) -> dict[ResourcePath, set[uuid.UUID]]:
    """Find the provenance graph files that serve datasets.

    Parameters
    ----------
    butler
        Butler of the repository.
    dataset_ids
        IDs of datasets, those that are not in the datastore left aside.

    Returns
    -------
    packs
        Addresses of the files, with the datasets that are in them.  Datasets
        with files of their own are not among them.
    """
    packs: dict[ResourcePath, set[uuid.UUID]] = {}
    found: dict[tuple[str, str], set[uuid.UUID]] = {}
    formatter = ProvenanceFormatter.name()
    stores = file_datastores(butler)
    for batch in itertools.batched(dataset_ids, _IDS_PER_QUERY):
        for store in stores:
            for row in record_table(store).fetch(dataset_id=batch):
                if row["formatter"] != formatter:
                    continue
                place = store.name, row["path"]
                if place not in found:
                    location = StoredFileInfo.from_record(row).file_location(store.locationFactory)
                    found[place] = packs.setdefault(location.uri, set())
                found[place].add(row["dataset_id"])
    return packs


@contextlib.contextmanager
def open_pack(uri: ResourcePath) -> Iterator[Iterator[PackedScan]]:
    """Read a provenance graph file from one end to the other.

    Parameters
    ----------
    uri
        Its address.

    Yields
    ------
    scans
        All quanta in it that were tried.
    """
    with contextlib.ExitStack() as stack:
        local = stack.enter_context(uri.as_local())
        reader = stack.enter_context(ProvenanceQuantumGraphReader.open(local))
        reader.read_full_graph()
        addresses = reader.address_reader.read_all()
        logs, metadata = (
            stack.enter_context(_open_blocks(reader, name)) for name in (LOG_MB_NAME, METADATA_MB_NAME)
        )
        # What was compressed with a dictionary can't be copied into another file.
        anew = "compression_dict" in reader.zf.namelist()

        def read(blocks: MultiblockReader, address: Address) -> bytes:
            data = blocks.read_bytes(address) or b""
            if data and anew:
                return zstandard.ZstdCompressor().compress(reader.decompressor.decompress(data))
            return data

        def scans() -> Iterator[PackedScan]:
            xgraph = reader.graph.bipartite_xgraph
            for quantum_id in itertools.chain.from_iterable(
                quanta.values() for quanta in reader.graph.quanta_by_task.values()
            ):
                info = cast(ProvenanceQuantumInfo, xgraph.nodes[quantum_id])
                if not info["attempts"]:
                    continue
                row = addresses[quantum_id].addresses
                scan = QuantumScan.from_blocks(
                    info["attempts"],
                    logs=read(logs, row[LOG_ADDRESS_INDEX]),
                    metadata=read(metadata, row[METADATA_ADDRESS_INDEX]),
                    produced=frozenset(n for n in xgraph[quantum_id] if xgraph.nodes[n]["produced"]),
                )
                dataset_ids = {each for each in (info["metadata_id"], info.get("log_id")) if each is not None}
                yield PackedScan(frozenset(dataset_ids), scan)

        yield scans()


@contextlib.contextmanager
def _open_blocks(reader: ProvenanceQuantumGraphReader, name: str) -> Iterator[MultiblockReader]:
    """Unpack a member of a graph file, since in some releases of CPython a seek in it goes astray."""
    with tempfile.TemporaryFile(prefix="spark-butler-") as stream:
        with reader.zf.open(f"{name}.mb") as member:
            shutil.copyfileobj(member, stream)
        yield MultiblockReader(stream, reader.header.int_size)
