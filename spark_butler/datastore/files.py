"""Files of datasets: their predicted addresses, and which exist.  Runs in the driver, without a registry."""

from __future__ import annotations

__all__ = [
    "FileFinder",
    "Files",
    "Place",
    "collect_files",
    "list_files",
]

import contextlib
import functools
import os
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lsst.daf.butler import DatasetRef, DatasetType, LimitedButler
from lsst.daf.butler.datastore.record_data import DatastoreRecordData
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.resources import ResourcePath

from .._daf_butler import export_records, file_datastores, record_table
from .._lsst_resources import bucket_of
from ..run_folders import run_folder

_THREADS = 16
_KEYS_PER_REQUEST = 1000

type Place = tuple[str, str]
"""Name of a datastore and a path in it."""

type Files = dict[uuid.UUID, list[tuple[Place, StoredFileInfo]]]
"""Places and datastore records of the files of datasets, by ID of the dataset."""


class FileFinder:
    """Finder of the files of datasets: predicts their places in the datastores, and lists which exist.

    ``dataset_types`` are those of the repository, by name.
    """

    def __init__(self, butler: LimitedButler, dataset_types: Mapping[str, DatasetType]):
        self._butler = butler
        self._dataset_types = dataset_types
        self._stores = {store.name: store for store in file_datastores(butler)}
        self._forms: dict[tuple[str, Any], list[tuple[str, Any, str]] | None] = {}
        self._sizes: dict[Place, int | None] = {}
        self._listed: list[str] = []

    def prepare(self, places: Collection[Place], run: str, n_known: int) -> None:
        """Find which places of a run have files, with as few requests as possible.

        ``run`` is the output run; its folder may be listed instead of single files.
        """
        if len(places) * _KEYS_PER_REQUEST > n_known + _KEYS_PER_REQUEST:
            for name, store in self._stores.items():
                folder = run_folder(store.root, run)
                for path, size in list_files(folder).items():
                    self._sizes[name, f"{run}/{path}"] = size
            self._listed.append(f"{run}/")
        self.find(places)

    def find(self, places: Iterable[Place]) -> dict[Place, int]:
        """Return the places that have a file, with its size in bytes."""
        places = list(places)
        unknown = [
            place
            for place in dict.fromkeys(places)
            if place not in self._sizes and not place[1].startswith(tuple(self._listed))
        ]
        if unknown:
            with ThreadPoolExecutor(_THREADS, thread_name_prefix="spark-butler-look") as pool:
                self._sizes.update(zip(unknown, pool.map(self._measure, unknown), strict=True))
        return {place: size for place in places if (size := self._sizes.get(place)) is not None}

    def find_complete(self, files: Files) -> Files:
        """Return the datasets of which all files exist."""
        found = self.find(place for parts in files.values() for place, _ in parts)
        return {
            dataset_id: parts
            for dataset_id, parts in files.items()
            if parts and all(place in found for place, _ in parts)
        }

    def find_changed(self, files: Files) -> Files:
        """Return the datasets whose files all exist, but not with the sizes in their records."""
        return {
            dataset_id: parts
            for dataset_id, parts in self.find_complete(files).items()
            if any(self._sizes[place] != info.file_size for place, info in parts)
        }

    def _measure(self, place: Place) -> int | None:
        try:
            return self.locate(place).size()
        except FileNotFoundError:
            return None

    def locate(self, place: Place) -> ResourcePath:
        """Return the address of a place."""
        name, path = place
        return self._stores[name].locationFactory.fromPath(path).uri

    def predict(self, ref: DatasetRef) -> list[Place]:
        """Return the predicted place of a dataset with dimension records, by its template."""
        name = ref.datasetType.name
        # A datastore may choose the template by either of them.
        key = name, ref.dataId.get("instrument")
        if key not in self._forms:
            self._forms[key] = self._make_form(ref)
        form = self._forms[key]
        if form is None:
            return [place for place, _ in self.predict_files([ref])[ref.id]]
        return [(store, template.format(ref) + suffix) for store, template, suffix in form]

    def _make_form(self, ref: DatasetRef) -> list[tuple[str, Any, str]] | None:
        """Return store, template and suffix of each file of a type; `None` if they don't give its places."""
        form: list[tuple[str, Any, str]] = []
        ref = self._repository_ref(ref)
        for (name, path), info in self.predict_files([ref])[ref.id]:
            template = self._stores[name].templates.getTemplate(ref)
            stem = template.format(ref)
            if info.component is not None or not path.startswith(stem):
                return None
            form.append((name, template, path.removeprefix(stem)))
        return form

    def predict_files(self, refs: Iterable[DatasetRef]) -> Files:
        """Return the predicted places of datasets, and their datastore records without the size.

        The datasets have dimension records attached.  A dataset without a file has no places.
        """
        refs = [self._repository_ref(ref) for ref in refs]
        records: dict[str, DatastoreRecordData] = {}
        for store in self._stores.values():
            records.update(store.export_predicted_records(refs))
        return {**{ref.id: [] for ref in refs}, **collect_files(records)}

    def registered_files(self, refs: Iterable[DatasetRef]) -> Files:
        """Return the places of datasets according to the repository; none for a dataset without a file."""
        refs = list(refs)
        records = export_records(self._butler, refs)
        return {**{ref.id: [] for ref in refs}, **collect_files(records)}

    def make_records(self, files: Files) -> dict[str, DatastoreRecordData]:
        """Build datastore records with the sizes that files have, by name of the datastore."""
        records: dict[str, DatastoreRecordData] = {}
        for dataset_id, parts in files.items():
            for place, info in parts:
                data = records.setdefault(place[0], DatastoreRecordData())
                table = record_table(self._stores[place[0]]).name
                tables = data.records.setdefault(dataset_id, {})
                tables.setdefault(table, []).append(info.update(file_size=self._sizes[place]))
        return records

    def _repository_ref(self, ref: DatasetRef) -> DatasetRef:
        dataset_type = self._dataset_types[ref.datasetType.name]
        return DatasetRef(dataset_type, ref.dataId, run=ref.run, id=ref.id, conform=False)


def collect_files(records: Mapping[str, DatastoreRecordData]) -> Files:
    """Return datastore records, which are by name of the datastore, by dataset."""
    files: Files = {}
    for name, data in records.items():
        for dataset_id, tables in data.records.items():
            assert isinstance(dataset_id, uuid.UUID)
            for info in (info for infos in tables.values() for info in infos):
                if isinstance(info, StoredFileInfo):
                    files.setdefault(dataset_id, []).append(((name, info.path), info))
    return files


def list_files(folder: ResourcePath, *, page_size: int = _KEYS_PER_REQUEST) -> dict[str, int]:
    """Return the sizes in bytes of all files below a folder, which need not exist, by relative path."""
    if folder.scheme == "s3":
        return _list_keys(folder, page_size)
    if folder.isLocal:
        return dict(_list_local(folder.ospath))
    found = list(ResourcePath.findFileResources([folder], grouped=False))
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = pool.map(lambda uri: uri.size(), found)
        return {str(uri.relative_to(folder)): size for uri, size in zip(found, sizes, strict=True)}


def _list_local(folder: str) -> Iterator[tuple[str, int]]:
    for directory, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(directory, name)
            with contextlib.suppress(FileNotFoundError):
                yield os.path.relpath(path, folder), os.path.getsize(path)


def _list_keys(folder: Any, page_size: int) -> dict[str, int]:
    """List the keys below a folder of an S3 store, which `lsst.resources` would do folder by folder."""
    client, bucket, prefix = folder.client, bucket_of(folder), folder.relativeToPathRoot

    def take(page: Mapping[str, Any]) -> dict[str, int]:
        # Some stores show a folder as a key.
        return {
            each["Key"].removeprefix(prefix): each["Size"]
            for each in page.get("Contents", ())
            if not each["Key"].endswith("/")
        }

    first = client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=page_size)
    if not first.get("IsTruncated"):
        return take(first)
    pages = functools.partial(
        client.get_paginator("list_objects_v2").paginate,
        Bucket=bucket,
        PaginationConfig={"PageSize": page_size},
    )

    def list_below(below: str) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for page in pages(Prefix=below):
            sizes.update(take(page))
        return sizes

    sizes: dict[str, int] = {}
    folders: list[str] = []
    for page in pages(Prefix=prefix, Delimiter="/"):
        sizes.update(take(page))
        folders.extend(each["Prefix"] for each in page.get("CommonPrefixes", ()))
    with ThreadPoolExecutor(_THREADS) as pool:
        for part in pool.map(list_below, folders):
            sizes.update(part)
    return sizes
