"""A real Docker engine and real registries on loopback, of this test process alone; their data goes with them.

They are Debian's `docker.io` and `docker-registry` (.ci/run installs them). The engine has no network of its own and
may need root; where it cannot be had, `Unavailable` says why.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bcrypt
import docker
import httpx

START_S = 40.0
NO_NETWORK = ("--iptables=false", "--ip6tables=false", "--bridge=none")


class Unavailable(Exception):
    """Why there is no engine or registry here."""


@dataclass(frozen=True)
class Registry:
    """A registry at `host` (host:port); `login` is what it asks for, if anything."""

    host: str
    login: tuple[str, str] | None = None

    def manifest_digest(self, repository: str, reference: str) -> str | None:
        """What the registry itself says of `repository:reference`; None if it has it not."""
        accept = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"
        url = f"http://{self.host}/v2/{repository}/manifests/{reference}"
        answer = httpx.head(url, headers={"Accept": accept}, auth=self.login)
        return answer.headers.get("Docker-Content-Digest") if answer.status_code == 200 else None


@contextlib.contextmanager
def engine() -> Iterator[str]:
    """Run an engine; its DOCKER_HOST. Overlay is fast, plain copies work everywhere."""
    said = []
    for driver in ("overlay2", "vfs"):
        with _folder("ts-dk-") as folder:
            url = f"unix://{folder}/docker.sock"
            argv = [
                _program("dockerd"),
                "--host",
                url,
                "--data-root",
                f"{folder}/data",
                "--exec-root",
                f"{folder}/exec",
            ]
            argv += ["--pidfile", f"{folder}/pid", "--storage-driver", driver, *NO_NETWORK]
            with _running(argv, folder) as process:
                if _until(lambda url=url: _pings(url), process):
                    yield url
                    return
            lines = (folder / "log").read_text(errors="replace").strip().splitlines() or ["no word"]
            said.append(f"{driver}: {lines[-1][-200:]}")
    raise Unavailable(f"dockerd does not start here ({'; '.join(said)})")


@contextlib.contextmanager
def registry(login: tuple[str, str] | None = None) -> Iterator[Registry]:
    """Run a registry that takes anything, or one that wants this login."""
    program = _program("docker-registry")
    with _folder("ts-reg-") as folder, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        taken.close()
        text = f"version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        text += f'http: {{addr: "{host}"}}\n'
        if login:
            hashed = bcrypt.hashpw(login[1].encode(), bcrypt.gensalt(4)).decode()
            (folder / "users").write_text(f"{login[0]}:{hashed}\n")
            text += f"auth: {{htpasswd: {{realm: test, path: {folder}/users}}}}\n"
        (folder / "config.yml").write_text(text)
        with _running([program, "serve", str(folder / "config.yml")], folder) as process:
            if not _until(lambda: _answers(host), process):
                raise Unavailable(f"docker-registry does not start here: {(folder / 'log').read_text()[-300:]}")
            yield Registry(host, login)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Unavailable(f"{name} is not installed (Debian: docker.io, docker-registry)")
    return found


@contextlib.contextmanager
def _folder(prefix: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))  # sockets in it need a short path
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _running(argv: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server that ends with us, however we end."""
    with (folder / "log").open("wb") as log:
        tied = ["setpriv", "--pdeathsig", "TERM", *argv] if shutil.which("setpriv") else argv
        process = subprocess.Popen(tied, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(ready, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if ready():
            return True
        time.sleep(0.05)
    return False


def _pings(url: str) -> bool:
    try:
        client = docker.DockerClient(base_url=url, timeout=5)
    except docker.errors.DockerException:
        return False
    with contextlib.closing(client):
        return bool(client.ping())


def _answers(host: str) -> bool:
    try:
        return httpx.get(f"http://{host}/v2/", timeout=5).status_code in (200, 401)
    except httpx.HTTPError:
        return False
