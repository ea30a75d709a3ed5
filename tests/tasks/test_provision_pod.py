"""Waiting for capacity is the recipe's choice, and ends with words about what to change."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from blocks.recipe import Recipe
from plugins.errors import CapacityError, UserError
from plugins.lium.pods import PodRow, PodSpec
from tasks.provision_pod import _rent as rent_patiently
from tasks.provision_pod import pod_name, pods_of

SPEC = PodSpec(name="ts-r-sft-a1", gpu_type="H200")
ROW = PodRow(id="id-1", name=SPEC.name, status="PENDING")
NOTHING = CapacityError("rent pod ts-r-sft-a1 (1x H200): no machine fits now")


@dataclass
class FakeRun:
    """A run whose account answers from a list, and whose naps take no time."""

    answers: list[Any]
    minutes: float = 0
    naps: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @property
    def recipe(self) -> Recipe:
        pod = {"capacity_wait_minutes": self.minutes}
        return Recipe.model_validate({"name": "small", "pod": pod, "sft": {"data": "/d", "num_rollout": 1}})

    @property
    def account(self) -> "FakeRun":
        return self

    def rent(self, spec: PodSpec) -> PodRow:
        assert spec is SPEC
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def check_cancelled(self) -> None:
        pass

    def nap(self, seconds: float) -> None:
        self.naps.append(seconds)

    def log(self, message: str) -> None:
        self.said.append(message)


def test_by_default_a_rent_that_finds_nothing_fails_at_once_and_names_the_settings() -> None:
    run = FakeRun([NOTHING])
    with pytest.raises(CapacityError, match=r"1x H200.*pod\.capacity_wait_minutes.*pod\.gpu_count") as caught:
        rent_patiently(run, SPEC)
    assert run.naps == [] and caught.value.__cause__ is NOTHING


def test_a_recipe_that_waits_gets_the_machine_that_comes_free() -> None:
    run = FakeRun([NOTHING, NOTHING, ROW], minutes=5)
    assert rent_patiently(run, SPEC) is ROW
    assert len(run.naps) == 2 and all(0 < nap <= 15 for nap in run.naps)
    assert all(line.startswith("WARNING ") and "looking again" in line for line in run.said)


def test_other_errors_are_not_waited_for() -> None:
    run = FakeRun([UserError("Lium knows no GPU called 'H20O'")], minutes=5)
    with pytest.raises(UserError, match="H20O"):
        rent_patiently(run, SPEC)
    assert run.naps == []


class Listing:
    """An account whose listing holds these names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def pods(self, prefix: str = "") -> list[PodRow]:
        return [PodRow(id=name, name=name, status="RUNNING") for name in self.names if name.startswith(prefix)]


def test_a_run_owns_only_its_own_pods_not_those_of_a_run_whose_id_begins_alike() -> None:
    listing = Listing(
        "ts-b1-sft-a2", "ts-b1-sft-a10", "ts-b1-x-sft-a1", "ts-b1-sft-rl-a1", "ts-b1-sftrl-a3", "ts-b1x-rl-a1"
    )
    owned = [pod.name for pod in pods_of(listing, "b1")]  # type: ignore[arg-type]
    assert owned == ["ts-b1-sft-a2", "ts-b1-sftrl-a3", "ts-b1-sft-a10"]


def test_no_two_runs_can_have_the_same_pod_name() -> None:
    groups = (["sft"], ["rl"], ["sft", "rl"])
    runs = ("b1", "b1-sft", "b1-rl", "b1-sft-a1", "b1-sftrl")
    names = [pod_name(run, group, number) for run in runs for group in groups for number in (1, 2)]
    assert len(set(names)) == len(names)
