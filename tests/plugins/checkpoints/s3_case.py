"""What the tests of the store on S3 share: a server that is well again after each, a bucket for each, small parts."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugins.checkpoints.disk import sha256_of
from plugins.checkpoints.stores.backend import Change, Source
from tests.plugins.checkpoints.s3_server import Server, application, s3_server
from tests.plugins.checkpoints.store_kits import S3Kit

SECRET = "wJalrXUtnFEMI-K7MDENG-secret"
PART = 2048


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def server() -> Iterator[Server]:
    yield application(True)
    application(True).well()


@pytest.fixture
def kit(server: Server) -> S3Kit:
    kit = S3Kit(s3_server(), part_bytes=PART, feed_part_bytes=PART)
    server.well()
    return kit


def source(tmp_path: Path, content: bytes, key: str = "run-1/sft/iter_0000019.a1/x") -> Source:
    path = tmp_path / "x"
    path.write_bytes(content)
    return Source(key, path, len(content), sha256_of(content))


def change(*files: Source, drop: tuple[str, ...] = ()) -> Change:
    return Change("a test", "run-1/sft/state.json", json.dumps({"n": time.monotonic_ns()}), None, files, drop=drop)


def content(parts: float) -> bytes:
    return os.urandom(int(parts * PART))
