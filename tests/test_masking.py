"""Secrets are masked in every form that texts have them in, and ordinary words are not."""

from __future__ import annotations

import base64
import json
import logging
import urllib.parse
from pathlib import Path

import pytest

from spark_butler.masking import hide_secrets, mask_logs

_KEY = "Pl/anted+Key=42"
_OTHER = "OtherProfile/Secret+1"
_PROFILE = "swift:se/cret@1"
_DATABASE = "da/ta@base:1"


@pytest.fixture(autouse=True)
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets where users have them."""
    credentials = tmp_path / "credentials"
    credentials.write_text(f"[default]\n[other]\naws_access_key_id = AK\naws_secret_access_key = {_OTHER}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", _KEY)
    quoted = urllib.parse.quote(_PROFILE, safe="")
    monkeypatch.setenv("LSST_RESOURCES_S3_PROFILE_swift", f"https://butler%3As3:{quoted}@swift.example.org")
    auth = [{"url": "postgresql://db", "username": "me", "password": _DATABASE}]
    monkeypatch.setenv("LSST_DB_AUTH_CREDENTIALS", json.dumps(auth))


@pytest.mark.parametrize("secret", [_KEY, _OTHER, _PROFILE, _DATABASE], ids=["key", "file", "profile", "db"])
def test_known_secret_is_masked_in_every_form(secret: str) -> None:
    forms = [secret, urllib.parse.quote(secret, safe=""), urllib.parse.quote(secret), json.dumps(secret)]
    forms += [repr(secret), base64.b64encode(secret.encode()).decode()]
    for form in forms:
        masked = hide_secrets(f"before {form} after")
        assert masked.startswith("before ")
        assert masked.endswith(" after")
        assert form.strip("\"'") not in masked


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("https://AK:simplepw@host/x", "simplepw"),
        ("postgresql://sb:pa/ss@host/db", "pa/ss"),
        ("postgresql://sb:p@ss@host/db", "p@ss"),
        ("https://butler%3As3:swift-secret@host", "swift-secret"),
        ("https://SECRETTOKEN@host/x", "SECRETTOKEN"),
        ("connection to host=h user=sb password=hunter2 failed", "hunter2"),
        ("host=h password='hunter 2' dbname=x", "hunter 2"),
        ("postgresql://host/db?user=sb&password=hunter2", "hunter2"),
        ("https://s3/x?X-Amz-Credential=AKIA/2026&X-Amz-Signature=deadbeef&X-Amz-Date=1", "deadbeef"),
        ("https://s3/x?X-Amz-Security-Token=tok%2Fen", "tok%2Fen"),
        ("https://s3/x?AWSAccessKeyId=AK&Signature=abc%3D&Expires=1", "abc%3D"),
        ("Authorization: AWS4-HMAC-SHA256 Credential=AKIA/.., Signature=deadbeef", "deadbeef"),
        ("{'Authorization': 'Bearer eyJhbGciOi'}", "eyJhbGciOi"),
        ("PGPASSWORD=hunter2", "hunter2"),
        ("--password=hunter2", "hunter2"),
        ("AccountKey=abcd==;", "abcd=="),
        ('{"aws_secret_access_key": "hunter2"}', "hunter2"),
        ("--conf spark.hadoop.fs.s3a.secret.key=hunter2", "hunter2"),
        ("--conf=spark.hadoop.fs.s3a.bucket.raw.session.token='hunter 2'", "hunter 2"),
        ('{"spark.hadoop.fs.s3a.encryption.key": "hunter2"}', "hunter2"),
        ("{'fs.azure.account.key.me.blob.core.windows.net': 'hunter2=='}", "hunter2"),
        ("spark.kubernetes.authenticate.submission.oauthToken=hunter2", "hunter2"),
        ("spark.executorEnv.MY_API_TOKEN_V2=hunter2", "hunter2"),
        ("-Djavax.net.ssl.trustStorePassword=hunter2", "hunter2"),
        ("-Dfs.azure.account.key.me.blob.core.windows.net=hunter2", "hunter2"),
        ("secret-key = hunter2", "hunter2"),
        ("api_key=hunter2&q=1", "hunter2"),
    ],
)
def test_secret_of_another_kind_is_masked(text: str, secret: str) -> None:
    assert secret not in hide_secrets(text)
    assert "***" in hide_secrets(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://profile@bucket/u/me/run",
        "http://127.0.0.1:9000/bucket/a@b",
        "spark://host:7077, then u/me@home",
        'FATAL:  password authentication failed for user "sb"',
        "The secret key is wrong; the token expired.",
        "u/me/first, detector=3, visit=42, key=value",
        "Signature of the function f(password)",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert hide_secrets(text) == text


def test_secret_that_is_a_word_is_masked_only_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "detect")
    assert hide_secrets("detect detector") == "*** detector"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "isr")
    assert hide_secrets("the task isr") == "the task isr"


def test_log_messages_and_tracebacks_are_masked(caplog: pytest.LogCaptureFixture) -> None:
    before = logging.getLogRecordFactory()
    try:
        mask_logs()
        mask_logs()
        logger = logging.getLogger("lsst.masking")
        logger.warning("key %s, %d", _KEY, 1)
        try:
            raise ValueError(f"with {_KEY}")
        except ValueError:
            logger.exception("Failed.")
        logger.warning("plain %s", "text")
    finally:
        logging.setLogRecordFactory(before)
    assert _KEY not in caplog.text
    assert "key ***, 1" in caplog.text
    assert "ValueError: with ***" in caplog.text
    assert caplog.records[-1].args == ("text",)
