"""Models and data sets read from a Hub of ours that behaves badly: cut, slow, forbidden, killed in the middle."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plugins.checkpoints.hub import fetch
from plugins.checkpoints.hub.fetch import HubFile, HubSource
from plugins.errors import StoreError, UserError
from tests.hub_server.app import Limits
from tests.hub_server.filling import fill
from tests.hub_server.running import Running, running_hub

REPO, TOKEN = "ann/base", "hf_secret0of0ann"
LARGE = bytes(range(256)) * 40_000  # 10 MB in chunks of 4
SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_hub(tmp_path_factory.mktemp("hub"), Limits()) as hub:
        hub.token(TOKEN, "ann")
        hub.token("hf_bob", "bob")
        fill(hub, TOKEN, REPO, {"config.json": b"{}", SHARD: LARGE, "empty.txt": b""}, private=True)
        yield hub


@pytest.fixture
def hub(running: Running, monkeypatch: pytest.MonkeyPatch) -> Running:
    running.clear()
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return running


def source(**more: Any) -> HubSource:
    slept: list[float] = more.pop("slept", [])
    return HubSource("model", more.pop("repo", REPO), pauses_s=(1.0, 2.0), sleep=slept.append, **more)


def everything(hub: HubSource) -> tuple[list[HubFile], str]:
    commit, _ = hub.commit()
    return list(hub.files(commit).values()), commit


def test_all_files_come_verified_and_a_second_time_nothing_is_asked(hub: Running, tmp_path: Path) -> None:
    files, commit = everything(source())
    told: list[int] = []
    source().fetch(files, commit, tmp_path / "m", progress=told.append)
    assert (tmp_path / "m" / SHARD).read_bytes() == LARGE
    assert (tmp_path / "m/config.json").read_bytes() == b"{}" and (tmp_path / "m/empty.txt").read_bytes() == b""
    assert sum(told) == sum(one.size_bytes for one in files)
    assert not list((tmp_path / "m").glob(".*.partial"))
    hub.clear()
    source().fetch(files, commit, tmp_path / "m")
    assert hub.calls() == []


def test_a_cut_download_goes_on_where_it_was_cut(hub: Running, tmp_path: Path) -> None:
    files, commit = everything(source())
    hub.fault("GET .*/_storage/object", cut_body_bytes=5_000_000)
    hub.fault("GET .*/_storage/object", cut_body_bytes=2_000_000)
    slept: list[float] = []
    source(slept=slept).fetch(files, commit, tmp_path)
    assert (tmp_path / SHARD).read_bytes() == LARGE
    assert sum(slept) == pytest.approx(2.0)  # a second each: something came each time, so the pauses began anew


def test_a_process_that_was_killed_leaves_what_came_and_the_next_goes_on_there(hub: Running, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from plugins.checkpoints.hub.fetch import HubSource\n"
        f"s = HubSource('model', {REPO!r}); c, _ = s.commit(); f = s.files(c)\n"
        f"s.fetch([f[{SHARD!r}]], c, Path(sys.argv[1]), progress=lambda n: (print(n, flush=True), time.sleep(60)))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        came = int(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
    assert 0 < came < len(LARGE)
    assert (tmp_path / f".{SHARD}.partial").stat().st_size >= came and not (tmp_path / SHARD).exists()
    hub.clear()
    files, commit = everything(source())
    told: list[int] = []
    source().fetch(files, commit, tmp_path, progress=told.append)
    assert (tmp_path / SHARD).read_bytes() == LARGE
    assert sum(told) == sum(one.size_bytes for one in files)


def test_a_partial_file_that_is_damaged_is_fetched_anew(hub: Running, tmp_path: Path) -> None:
    files, commit = everything(source())
    for damage in (b"x" * 1000, LARGE + b"too long", b"y" * len(LARGE)):
        (tmp_path / SHARD).unlink(missing_ok=True)
        (tmp_path / f".{SHARD}.partial").write_bytes(damage)
        told: list[int] = []
        source().fetch(files, commit, tmp_path, progress=told.append)
        assert (tmp_path / SHARD).read_bytes() == LARGE
        assert sum(told) == sum(one.size_bytes for one in files)


def test_a_file_that_is_never_what_the_hub_promised_is_not_taken(hub: Running, tmp_path: Path) -> None:
    files, commit = everything(source())
    lies = [HubFile(one.path, one.size_bytes, hashlib.sha256(b"").hexdigest(), one.blob) for one in files]
    with pytest.raises(StoreError, match="came twice with another content"):
        source().fetch([one for one in lies if one.path == SHARD], commit, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_hub_that_stays_silent_is_given_up_after_all_pauses_and_what_came_is_kept(
    hub: Running, tmp_path: Path
) -> None:
    files, commit = everything(source())
    hub.fault("GET .*/_storage/object", cut_body_bytes=5_000_000)
    hub.fault(".*", times=50, status=503)
    slept: list[float] = []
    with pytest.raises(StoreError, match="the Hub failed with 503"):
        source(slept=slept).fetch(files, commit, tmp_path)
    assert sum(slept) >= 3.0
    hub.clear()
    source().fetch(files, commit, tmp_path)
    assert (tmp_path / SHARD).read_bytes() == LARGE


def test_a_hub_that_asks_to_wait_is_waited_for(hub: Running) -> None:
    hub.fault("GET /api/models", status=429, headers={"Retry-After": "9"}, times=2)
    slept: list[float] = []
    source(slept=slept).commit()
    assert sum(slept) == pytest.approx(18.0)


def test_a_download_that_is_stopped_keeps_what_came(hub: Running, tmp_path: Path) -> None:
    files, commit = everything(source())
    stop = threading.Event()
    with pytest.raises(StoreError, match="was stopped"):
        source().fetch(files, commit, tmp_path, stop=stop, progress=lambda n: stop.set() if n > 1000 else None)
    assert (tmp_path / f".{SHARD}.partial").exists()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"status": 403, "headers": {"X-Error-Code": "GatedRepo"}}, "it is gated: ask for access"),
        ({"status": 401, "headers": {"X-Error-Code": "GatedRepo"}}, "name HF_TOKEN in the recipe's `secrets`"),
        ({"status": 403}, "the token may not read it"),
        (
            {"status": 401, "headers": {"X-Error-Message": "Invalid credentials in Authorization header"}},
            "the token was refused: make a new one",
        ),
    ],
)
def test_a_refusal_is_the_users_matter_and_not_tried_again(hub: Running, fault: dict[str, Any], words: str) -> None:
    hub.fault("GET /api/models", **fault)
    slept: list[float] = []
    with pytest.raises(UserError, match=words) as refused:
        source(slept=slept).commit()
    assert slept == [] and TOKEN not in str(refused.value) and REPO in str(refused.value)


def test_what_is_not_there_is_named(hub: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there is no such revision: name a branch, tag or commit"):
        source().commit("nowhere")
    with pytest.raises(UserError, match="no such repository, or this token may not see it"):
        source(repo="ann/other").commit()
    with pytest.raises(UserError, match="no such file"):
        source().content("absent.json", "main")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", "/nonexistent")
    with pytest.raises(UserError, match="it is private and HF_TOKEN is not set here"):
        HubSource("model", REPO, token=None, pauses_s=()).commit()


def test_a_disk_that_is_too_small_is_seen_before_the_download(
    hub: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, commit = everything(source())
    monkeypatch.setattr(fetch, "SPARE_BYTES", 10**18)
    hub.clear()
    with pytest.raises(UserError, match=r"needs 0\.0 GB more there .*pod\.min_disk_gb"):
        source().fetch(files, commit, tmp_path)
    assert hub.calls() == []


def test_a_disk_that_fills_up_is_the_users_matter(
    hub: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, commit = everything(source())

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetch.os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        source().fetch([one for one in files if one.path == SHARD], commit, tmp_path)


def test_a_download_that_is_stopped_does_not_sit_out_its_pauses(hub: Running, tmp_path: Path) -> None:
    files, commit = everything(source())
    hub.fault("GET .*/resolve/", times=1000, status=503)
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(StoreError, match="the Hub failed with 503"):
        HubSource("model", REPO, pauses_s=(3600.0,)).fetch(files, commit, tmp_path, stop=stop)
