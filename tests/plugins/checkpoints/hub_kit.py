"""The kit of the store on the Hub, for `stores_contract.py`: each has a repository of its own on one server."""

import atexit
import functools
import secrets
import tempfile
import threading
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from plugins.checkpoints.disk import Progress
from plugins.checkpoints.hub.backend import HubBackend
from plugins.checkpoints.hub.pace import Pace
from plugins.checkpoints.hub.place import HubPlace
from plugins.checkpoints.hub.repo import HubRepo
from tests.hub_server.app import Limits
from tests.hub_server.running import Running, running_hub
from tests.plugins.checkpoints.store_kits import RUN, STAGE, Before, _ObjectKit

TOKEN, PREFIX = "hf_of0the0kit", "some/prefix"


@functools.cache
def hub_server() -> Running:
    """One server for all tests of this process."""
    stack = ExitStack()
    atexit.register(stack.close)
    root = stack.enter_context(tempfile.TemporaryDirectory())
    hub = stack.enter_context(running_hub(Path(root), Limits(multipart_over=150, part_bytes=100, page=9)))
    hub.token(TOKEN, "ann")
    return hub


class HubKit(_ObjectKit):
    def __init__(self, _root: Path) -> None:
        self.url = hub_server().url
        self.api = HfApi(self.url, token=TOKEN)
        self.repo = f"ann/{secrets.token_hex(6)}"
        self.api.create_repo(self.repo, private=True)

    def backend(self, before: Before | None = None) -> Any:
        place = HubPlace(self.repo, prefix=PREFIX)
        known: dict[str, Any] = {"token": TOKEN, "hub_url": self.url, "pace": Pace(per_hour=10**6)}
        return HubBackend(AnnouncedRepo(before, place, sleep=lambda _s: None, **known))

    def sends_data(self, operation: str) -> bool:
        return operation.startswith("preupload_lfs_files ")

    def read(self, name: str) -> bytes:
        content = self.backend().repo.content(f"{PREFIX}/{name}", "main")
        assert content is not None
        return bytes(content)

    def write(self, name: str, content: bytes | None) -> None:
        path = f"{PREFIX}/{name}"
        gone = self.api.file_exists(self.repo, path) and content is None
        if content is not None or gone:
            change = CommitOperationDelete(path) if content is None else CommitOperationAdd(path, BytesIO(content))
            self.api.create_commit(self.repo, [change], commit_message="damage")

    def damage_state(self, content: bytes | None) -> None:
        self.write(f"{RUN}/{STAGE}/state.json", content)


class AnnouncedApi:
    """An `HfApi` that says what it is about to do."""

    def __init__(self, api: HfApi, before: Before) -> None:
        self._api, self._before = api, before

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            self._before(f"{name} {arguments[:1]}")
            return getattr(self._api, name)(*arguments, **more)

        return call


class AnnouncedRepo(HubRepo):
    """Says what it is about to ask or to do."""

    def __init__(self, before: Before | None, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._before = before or (lambda _what: None)
        if before:
            self.api: Any = AnnouncedApi(self.api, before)

    def content(self, path: str, revision: str) -> bytes | None:
        self._before(f"read {path}")
        return super().content(path, revision)

    def download(self, path: str, target: Path | None, stop: threading.Event, progress: Progress | None = None) -> str:
        self._before(f"download {path}")
        return super().download(path, target, stop, progress)
