"""The engine and the registries as fixtures, one of each for a test process; a conftest imports them by name."""

import contextlib
import io
import json
import shutil
import struct
import tarfile
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.docker_server import Registry, Unavailable, engine, registry

LOGIN = ("ada", "pa55-word-that-must-not-be-shown")


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(engine())
        except Unavailable as why:
            pytest.skip(str(why))
        yield url


@pytest.fixture(scope="session")
def open_registry() -> Iterator[Registry]:
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(registry())
        except Unavailable as why:
            pytest.skip(str(why))
        yield server


@pytest.fixture(scope="session")
def private_registry() -> Iterator[Registry]:
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(registry(LOGIN))
        except Unavailable as why:
            pytest.skip(str(why))
        yield server


@pytest.fixture
def docker_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Docker's config.json of this test, without logins."""
    folder = tmp_path / "docker-config"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    (folder / "config.json").write_text("{}")
    return folder / "config.json"


@pytest.fixture
def here(docker_engine: str, docker_config: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[docker.APIClient]:
    """The environment names the test engine; a client of it."""
    monkeypatch.setenv("DOCKER_HOST", docker_engine)
    for name in ("DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    with contextlib.closing(docker.APIClient(base_url=docker_engine)) as api:
        yield api


@pytest.fixture(scope="session")
def base_image(docker_engine: str) -> str:
    """A base with a shell in it and nothing else, as slime's image stands under ours."""
    busybox = shutil.which("busybox")
    if busybox is None or needs_a_loader(Path(busybox).read_bytes()):
        pytest.skip("a static busybox is not installed (Debian: busybox-static)")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, target in (("bin/sh", "busybox"), ("bin/cat", "busybox")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        tar.add(busybox, "bin/busybox")
    with contextlib.closing(docker.APIClient(base_url=docker_engine)) as api:
        api.import_image_from_data(out.getvalue(), repository="base", tag="1")
    return "base:1"


def needs_a_loader(program: bytes) -> bool:
    """Whether a 64-bit ELF program has a PT_INTERP segment, so is not static."""
    (first,), (size, count) = struct.unpack_from("<Q", program, 32), struct.unpack_from("<HH", program, 54)
    return any(struct.unpack_from("<I", program, first + n * size) == (3,) for n in range(count))


def log_in(config: Path, registry: Registry, password: str = LOGIN[1]) -> None:
    """What `docker login` leaves in config.json."""
    auth = b64encode(f"{LOGIN[0]}:{password}".encode()).decode()
    config.write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
