"""Environment variables of workers, which driver and daemon set before they import libraries."""

from __future__ import annotations

__all__ = ["IMPORTS_VARIABLE", "S3_MODULES", "limit_threads", "worker_environment"]

import os

_ENVIRONMENT = {
    # `s3_retries.prepare_client` does the same in processes that are not workers.
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_MAX_THREADS": "1",
    "LSST_RESOURCES_NUM_WORKERS": "1",
    "LSST_S3_USE_THREADS": "False",
}

IMPORTS_VARIABLE = "SPARK_BUTLER_IMPORTS"
"""Environment variable with the modules, joined by commas, that are imported before workers are forked."""

S3_MODULES = ("lsst.resources.s3", "boto3.s3.inject", "encodings.idna")
"""Modules that the first request to an S3 store imports."""

_PASSED_ON = (
    "AWS_CA_BUNDLE",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "LSST_DISABLE_BUCKET_VALIDATION",
    "REQUESTS_CA_BUNDLE",
    "S3_ENDPOINT_URL",
)
_PROFILES = "LSST_RESOURCES_S3_PROFILE_"


def limit_threads() -> None:
    """Limit libraries that are loaded from now on to one thread, unless the environment says otherwise."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def worker_environment() -> dict[str, str]:
    """Return the environment variables that workers take over from the driver.

    They limit threads, and name the addresses, regions and profiles of object stores, and the file
    of certificates.  They never contain credentials: workers have their own.
    """
    environment = {name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()}
    environment.update(
        (name, value)
        for name, value in os.environ.items()
        # An address with a user and password in it is a credential.
        if (name in _PASSED_ON or name.startswith(_PROFILES)) and "@" not in value
    )
    return environment
