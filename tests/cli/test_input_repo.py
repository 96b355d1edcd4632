"""Runs whose inputs are in another repository, which may only be read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import Result
from lsst.daf.butler import Butler

from tests.support.job_harness import JobRepo
from tests.support.own_repo import EVERYTHING, OUTPUT, OwnRepo
from tests.support.sealed_registry import sealed_registry

RunJob = Callable[..., Result]


@pytest.mark.slow
def test_inputs_of_another_repository_are_copied_once(
    own_repo: OwnRepo, job_repo: JobRepo, run_job: RunJob
) -> None:
    before = job_repo.contents()
    planned = run_job(*own_repo.arguments(job_repo.root, "--dry-run"))
    assert planned.exit_code == 0, planned.output
    assert "0 are in the repository already, 4 files" in planned.output
    result = run_job(*own_repo.arguments(job_repo.root))
    assert result.exit_code == 0, result.output
    assert own_repo.count() == EVERYTHING
    with (
        Butler.from_config(own_repo.root, writeable=False) as butler,
        Butler.from_config(job_repo.root, writeable=False) as source,
    ):
        assert butler.collections.get_info(OUTPUT).children[-1] == f"{OUTPUT}/inputs"
        assert butler.collections.get_info(f"{OUTPUT}/inputs").type.name == "TAGGED"
        refs = butler.query_datasets("mock_raw", collections="raw/all")
        assert set(refs) == set(source.query_datasets("mock_raw", collections="raw/all"))
        assert [butler.get(ref) for ref in refs] == [source.get(ref) for ref in refs]
    times = own_repo.times()
    again = run_job(*own_repo.arguments(job_repo.root, "--output-run", f"{OUTPUT}/again"))
    assert again.exit_code == 0, again.output
    resumed = run_job(*own_repo.arguments(job_repo.root, "--extend-run", "--skip-existing"))
    assert resumed.exit_code == 0, resumed.output
    assert own_repo.times() == times
    assert job_repo.contents() == before


@pytest.mark.slow
def test_run_goes_on_after_an_input_could_not_be_copied(
    own_repo: OwnRepo, job_repo: JobRepo, run_job: RunJob
) -> None:
    client = job_repo.server.client()
    lost = next(key for key in sorted(job_repo.keys()) if "mock_raw" in key)
    body = client.get_object(Bucket=job_repo.bucket, Key=lost)["Body"].read()
    job_repo.server.remove_keys(job_repo.bucket, [lost])
    try:
        result = run_job(*own_repo.arguments(job_repo.root))
    finally:
        client.put_object(Bucket=job_repo.bucket, Key=lost, Body=body)
    assert result.exit_code == 1
    assert f"1 of 4 input files can't be copied, such as s3://{own_repo.bucket}/{lost}" in result.output
    assert "--extend-run --skip-existing" in result.output
    times = own_repo.times()
    assert len(times) == 3
    again = run_job(*own_repo.arguments(job_repo.root, "--extend-run", "--skip-existing"))
    assert again.exit_code == 0, again.output
    assert own_repo.count() == EVERYTHING
    assert times.items() < own_repo.times().items()


def _refused(own_repo: OwnRepo, run_job: RunJob, source: object, *more: str) -> str:
    """Return the only line that a refused run prints; it has written nothing."""
    before = own_repo.state()
    result = run_job(*own_repo.arguments(source, *more))
    assert result.exit_code == 2, result.output
    assert own_repo.state() == before
    return result.output.strip().splitlines()[-1]


def test_input_repository_that_is_missing_is_refused(own_repo: OwnRepo, run_job: RunJob) -> None:
    text = _refused(own_repo, run_job, "/no/such/repo")
    assert "no Butler repository at '/no/such/repo'" in text
    assert "--input-repo" in text


def test_repository_as_its_own_input_is_refused(own_repo: OwnRepo, run_job: RunJob) -> None:
    text = _refused(own_repo, run_job, own_repo.root)
    assert f"keeps its files in s3://{own_repo.bucket}/repo/" in text


def test_input_collection_that_is_missing_is_refused(
    own_repo: OwnRepo, job_repo: JobRepo, run_job: RunJob
) -> None:
    text = _refused(own_repo, run_job, job_repo.root, "-i", "default")
    assert "no collection 'default'; did you mean 'defaults'?" in text


def test_other_record_of_a_dimension_is_refused(
    own_repo: OwnRepo, job_repo: JobRepo, run_job: RunJob
) -> None:
    with (
        Butler.from_config(own_repo.root, writeable=True) as butler,
        Butler.from_config(job_repo.root, writeable=False) as source,
    ):
        butler.registry.insertDimensionData("instrument", *source.query_dimension_records("instrument"))
        (record,) = source.query_dimension_records("detector", instrument="Cam1", detector=1)
        butler.registry.insertDimensionData("detector", {**record.toDict(), "full_name": "other"})
    text = _refused(own_repo, run_job, job_repo.root)
    assert "The detector with instrument Cam1, detector 1 differs between the two repositories" in text
    assert "its full_name is 'other' in the run's, and 'Aa' in the inputs'" in text


def test_other_dataset_in_the_place_of_an_input_is_refused(
    own_repo: OwnRepo, job_repo: JobRepo, run_job: RunJob
) -> None:
    with (
        Butler.from_config(own_repo.root, writeable=True) as butler,
        Butler.from_config(job_repo.root, writeable=False) as source,
    ):
        (ref,) = source.query_datasets(
            "mock_raw", collections="raw/all", where="instrument = 'Cam1' AND detector = 1"
        )
        butler.transfer_dimension_records_from(source, [ref])
        butler.registry.registerDatasetType(ref.datasetType)
        butler.collections.register("raw/all")
        butler.put(source.get(ref), "mock_raw", ref.dataId, run="raw/all")
    text = _refused(own_repo, run_job, job_repo.root)
    assert "mock_raw {instrument Cam1, detector 1} of run 'raw/all'" in text
    assert f"in the place of an input with the ID {ref.id}" in text


def test_repository_that_may_not_be_written_is_refused(
    own_repo: OwnRepo, job_repo: JobRepo, run_job: RunJob
) -> None:
    with sealed_registry():
        text = _refused(own_repo, run_job, job_repo.root)
    assert "can't be written to" in text
