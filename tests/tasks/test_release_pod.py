"""Pods are given back first; what Prefect is told about it can wait."""

import json
from pathlib import Path

import pytest

from plugins.lium.pods import PodRow
from tasks.local_servers import EMULATOR_PORT, _preferred, recorded_url
from tasks.release_pod import release_pods
from tests.tasks.fake_market import host, scene
from tests.tasks.memory_board import row

release = release_pods.fn


def pod(name: str, pod_id: str = "1") -> PodRow:
    return PodRow(id=pod_id, name=name, status="RUNNING", price_per_hour=2.0)


def test_a_prefect_server_that_is_gone_does_not_keep_a_pod_from_being_given_back() -> None:
    here = scene(host(1))
    here.market.listed = {"1": pod("ts-r-sft-a1"), "2": pod("ts-r-x-sft-a1", "2")}
    here.board.rows = [row("ts-r-sft-a1", "1")]
    here.run.ledger.rows()  # as the run read it when it began
    here.board.down = True
    release(here.run, None)
    assert here.market.released == ["ts-r-sft-a1"]


def test_a_pod_that_the_listing_lacks_is_given_back_by_its_id() -> None:
    here = scene(host(1))
    here.market.listed, here.market.hidden = {"1": pod("ts-r-sft-a1")}, {"1"}
    here.board.rows = [row("ts-r-sft-a1", "1")]
    release(here.run, None)
    assert here.market.listed == {} and here.board.rows[0]["state"] == "ENDED"


def test_a_rent_that_nobody_saw_the_end_of_is_asked_about_and_given_back() -> None:
    here = scene(host(1))
    intent = {"name": "ts-r-sft-a1", "executor_id": "ex-1", "key": "k", "endpoint": "/", "payload": {}, "at": 1.9e9}
    here.board.rows = [row("ts-r-sft-a1", None, state="INTENT", intent=intent)]
    here.market.settled["ts-r-sft-a1"] = pod("ts-r-sft-a1")
    release(here.run, None)
    assert here.market.released == ["ts-r-sft-a1"]
    assert (here.board.rows[0]["state"], here.board.rows[0]["id"]) == ("ENDED", "1")


def test_a_pod_that_was_handed_on_warm_is_left_to_the_next_run() -> None:
    here = scene(host(1))
    here.market.listed = {"1": pod("ts-r-sft-a1")}
    here.board.rows = [row("ts-r-sft-a1", "1", state="WARM", ended_at="2030-01-01T01:00:00+00:00")]
    release(here.run, None)
    assert here.market.released == []


def test_the_queue_of_a_pod_goes_with_it_so_that_its_token_is_worth_nothing() -> None:
    here = scene(host(1))
    here.market.listed, here.board.queues = {"1": pod("ts-r-sft-a1")}, {"ts-r-sft-a1", "ts-other-sft-a1"}
    here.board.rows = [row("ts-r-sft-a1", "1")]
    release(here.run, None)
    assert here.board.queues == {"ts-other-sft-a1"}


def test_a_server_that_died_is_started_again_where_it_listened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINSTACK_DIR", str(tmp_path))
    assert _preferred("emulator", EMULATOR_PORT) == 0, "a state folder of one's own has no well-known port"
    (tmp_path / "local").mkdir()
    record = {"name": "emulator", "pid": 1, "started": "never", "url": "http://127.0.0.1:45678/api"}
    (tmp_path / "local" / "emulator.json").write_text(json.dumps(record))
    assert recorded_url("emulator") == record["url"]
    assert _preferred("emulator", EMULATOR_PORT) == 45678
