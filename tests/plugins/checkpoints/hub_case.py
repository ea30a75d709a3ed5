"""What the tests of the store on the Hub share: one server a module, a repository made anew for each test, a clock."""

from collections.abc import Iterator

import pytest
from huggingface_hub import HfApi

from plugins.checkpoints.hub.pace import Pace
from plugins.checkpoints.stores.hub import open_hub
from plugins.checkpoints.stores.objects import ObjectStore
from tests.hub_server.app import Limits
from tests.hub_server.running import Running, running_hub

RUN, STAGE, REPO, TOKEN = "run-1", "sft", "ann/rolling", "hf_secret0of0ann"
URI = f"hub://{REPO}@training/ckpt"
COMMIT = "POST .*/commit/"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits = Limits(regular_bytes=2_000, multipart_over=150, part_bytes=100, page=7)
    with running_hub(tmp_path_factory.mktemp("hub"), limits) as hub:
        hub.token(TOKEN, "ann", orgs=["lab"])
        yield hub


@pytest.fixture
def hub(running: Running, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    running.clear()
    running.rate(None)
    api = HfApi(running.url, token=TOKEN)
    api.delete_repo(REPO, missing_ok=True)
    api.create_repo(REPO, private=True)
    api.create_branch(REPO, branch="training")
    return running


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def now(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds


def opened(clock: Clock | None = None, uri: str = URI, **more) -> ObjectStore:
    clock = clock or Clock()
    return open_hub(uri, pace=Pace(clock.now), sleep=clock.sleep, **more)


@pytest.fixture
def store(hub: Running) -> ObjectStore:
    return opened()


def files(hub: Running, branch: str = "training") -> set[str]:
    return set(HfApi(hub.url, token=TOKEN).list_repo_files(REPO, revision=branch)) - {".gitattributes"}


def objects(hub: Running) -> set[str]:
    """Hashes of the large files that the Hub has of the repository."""
    return {path.name for path in (hub.root / "lfs" / REPO).glob("*")}


def pointed(hub: Running) -> list[int]:
    """The iterations that another process sees."""
    return [manifest.iteration for manifest in opened().list(RUN, STAGE)]
