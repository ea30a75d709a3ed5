"""Pods are given back first; what Prefect is told about it can wait."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from plugins.lium.pods import PodRow
from tasks.local_servers import EMULATOR_PORT, _preferred, recorded_url
from tasks.release_pod import release_pods


@dataclass
class Account:
    """A Lium account that notes what is released."""

    rows: list[PodRow]
    released: list[str] = field(default_factory=list)

    def pods(self, prefix: str = "") -> list[PodRow]:
        return [row for row in self.rows if row.name.startswith(prefix) and row.name not in self.released]

    def release(self, name: str) -> None:
        self.released.append(name)


class DeadClient:
    """A Prefect client whose server is gone; any call but the look at its address is an error."""

    api_url = "http://127.0.0.1:1/api"


@dataclass
class FakeRun:
    """As much of a run as giving pods back needs."""

    account: Account
    run_id: str = "r"
    client: DeadClient = field(default_factory=DeadClient)
    said: list[str] = field(default_factory=list)

    def let_go(self, pod_id: str) -> None:
        self.said.append(f"let go {pod_id}")

    def log(self, message: str) -> None:
        self.said.append(message)


def test_a_prefect_server_that_is_gone_does_not_keep_a_pod_from_being_given_back() -> None:
    mine = PodRow(id="1", name="ts-r-sft-a1", status="RUNNING")
    other = PodRow(id="2", name="ts-r-x-sft-a1", status="RUNNING")
    run = FakeRun(Account([mine, other]))
    assert release_pods.fn(run, None) == 0.0  # type: ignore[arg-type]
    assert run.account.released == ["ts-r-sft-a1"]


def test_a_server_that_died_is_started_again_where_it_listened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINSTACK_DIR", str(tmp_path))
    assert _preferred("emulator", EMULATOR_PORT) == 0, "a state folder of one's own has no well-known port"
    (tmp_path / "local").mkdir()
    record = {"name": "emulator", "pid": 1, "started": "never", "url": "http://127.0.0.1:45678/api"}
    (tmp_path / "local" / "emulator.json").write_text(json.dumps(record))
    assert recorded_url("emulator") == record["url"]
    assert _preferred("emulator", EMULATOR_PORT) == 45678
