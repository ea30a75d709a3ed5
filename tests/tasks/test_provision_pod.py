"""Getting a pod: the best offer, the next one when a host will not do, and never a second one beside the first."""

from datetime import UTC, datetime

import pytest

from plugins.errors import CapacityError, ControlPlaneError, PodLost, Refused, UserError
from plugins.lium.offers import Rest
from plugins.lium.pods import PodRow
from plugins.lium.preflight import Check
from tasks.board import WarmPod
from tasks.provision_pod import living_pod, pod_name, pods_of, provision_pod, rest, run_of
from tasks.release_pod import release_pods
from tasks.run import RunCancelled, RunEnded
from tests.tasks.fake_market import NO_ANSWER, NO_MACHINE, host, scene
from tests.tasks.memory_board import MemoryBoard, row

provision = provision_pod.fn
NAME = "ts-r-sft-a1"


def living(name: str = NAME, **changes) -> PodRow:
    values = {"ssh_host": "127.0.0.1", "price_per_hour": 2.0, "executor_id": "ex-1", "gpu_name": "NVIDIA H200"}
    return PodRow(f"id-{name}", name, "RUNNING", gpu_count=1, **{**values, **changes})


def test_the_cheapest_host_is_rented_checked_and_given_a_worker() -> None:
    here = scene(host(1, 2.4), host(2, 1.9), host(3, 2.2))
    link = provision(here.run, ["sft"])
    assert [order.executor_id for order in here.market.orders] == ["ex-2"]
    assert (link.name, here.links[0].said) == (NAME, ["preflight", "worker"])
    (found,) = here.board.rows
    assert (found["state"], found["fit"], found["intent"]) == ("RUNNING", True, None)
    assert here.board.tables["preflight-1"] == [
        {"check": "GPU type", "found": "NVIDIA H200", "limit": "H200", "verdict": "ok"}
    ]


def test_its_server_side_end_is_set_before_anything_else_is_done_with_it() -> None:
    here = scene(host(1), dead_man_minutes=30)
    provision(here.run, ["sft"])
    (end,) = here.market.ends.values()
    assert end.timestamp() - here.run.clock.now() == pytest.approx(1800, abs=5)


def test_the_server_side_end_is_sooner_when_the_money_ends_sooner() -> None:
    here = scene(host(1), dead_man_minutes=30, budget_usd=3.0)
    here.board.rows = [row("ts-r-sft-a1", "old", ended_at="2030-01-01T01:00:00+00:00", cost_usd=2.5, state="ENDED")]
    provision(here.run, ["sft"])
    (end,) = here.market.ends.values()
    assert end.timestamp() - here.run.clock.now() == pytest.approx(900, abs=5), "half a dollar at 2 USD per hour"


BAD = {
    "refused rent": {"fails": {"ex-1": NO_MACHINE}},
    "boot failure": {"broken_boots": {"ex-1"}},
    "more money than listed": {"real_price": {"ex-1": 3.5}},
}


@pytest.mark.parametrize("what", BAD)
def test_a_host_that_will_not_do_is_given_back_rests_and_the_next_offer_is_taken(what: str) -> None:
    here = scene(host(1, 1.0), host(2, 2.0))
    for name, value in BAD[what].items():
        setattr(here.market, name, value)
    link = provision(here.run, ["sft"])
    assert (link.name, link.row.executor_id) == ("ts-r-sft-a2", "ex-2")
    assert [pod.name for pod in here.market.pods()] == ["ts-r-sft-a2"], "one pod at a time"
    assert set(here.board.hosts) == {"ex-1"} and here.board.hosts["ex-1"].until > here.run.clock.now()
    assert here.board.rows[0]["state"] in ("ENDED", "REFUSED")


def test_a_host_that_lies_about_its_gpus_is_named_and_left(caplog) -> None:
    lie = [Check("GPU type", "NVIDIA A10", "H200", ok=False)]
    here = scene(host(1, 1.0), host(2, 2.0), link={"ex-1": {"checks": lie}})
    assert provision(here.run, ["sft"]).row.executor_id == "ex-2"
    assert any("GPU type" in line and "NVIDIA A10" in line for line in here.said)
    assert "close" in here.links[0].said


@pytest.mark.parametrize("trouble", [PodLost("SSH does not answer"), {"worker_fails": PodLost("no worker")}])
def test_a_pod_that_cannot_be_reached_or_starts_no_worker_is_left(trouble) -> None:
    here = scene(host(1, 1.0), host(2, 2.0), link={"ex-1": trouble})
    assert provision(here.run, ["sft"]).row.executor_id == "ex-2"
    assert here.market.released == [NAME]


def test_hosts_that_rest_are_not_rented_unless_the_recipe_says_so() -> None:
    board = MemoryBoard(hosts={"ex-1": Rest(until=2e9, why="lost a pod")})
    assert provision(scene(host(1, 1.0), host(2, 2.0), board=board).run, ["sft"]).row.executor_id == "ex-2"
    assert (
        provision(
            scene(host(1, 1.0), host(2, 2.0), board=MemoryBoard(hosts=board.hosts), bad_host_hours=0).run, ["sft"]
        ).row.executor_id
        == "ex-1"
    )


def test_a_market_of_broken_hosts_ends_in_words() -> None:
    here = scene(*(host(number) for number in range(30)))
    here.market.broken_boots = {f"ex-{number}" for number in range(30)}
    with pytest.raises(PodLost, match=r"12 hosts in a row would not do.*it broke"):
        provision(here.run, ["sft"])
    assert here.market.pods() == []


def test_without_capacity_it_fails_at_once_or_waits_as_long_as_the_recipe_says_and_shows_it() -> None:
    here = scene(host(1, free_gpus=0))
    with pytest.raises(CapacityError, match=r"pod\.capacity_wait_minutes"):
        provision(here.run, ["sft"])
    assert here.run.clock.slept == [] and here.board.announced == []
    here = scene(host(1, free_gpus=0), capacity_wait_minutes=10)
    with pytest.raises(CapacityError, match="after 10 minutes"):
        provision(here.run, ["sft"])
    assert sum(here.run.clock.slept) == pytest.approx(600)
    assert here.board.announced == ["Waiting for capacity"]
    assert 10 <= len(here.run.clock.slept) <= 25, "it looks now and then, it does not spin"


def test_capacity_that_comes_is_taken() -> None:
    here = scene(host(1, free_gpus=0), capacity_wait_minutes=10)
    here.run.clock.sleep = lambda seconds, wake=None: here.market.offered.__setitem__(0, host(1))  # type: ignore[method-assign]
    assert provision(here.run, ["sft"]).row.executor_id == "ex-1"


def test_a_cancel_while_waiting_for_capacity_ends_the_waiting() -> None:
    here = scene(host(1, free_gpus=0), capacity_wait_minutes=10)
    here.run._cancelled = True
    with pytest.raises(RunCancelled):
        provision(here.run, ["sft"])


@pytest.mark.parametrize(("pod", "words"), [({"gpu": "H20O"}, "H20O.*H200"), ({"countries": ["FI"]}, "FI.*US")])
def test_what_can_never_be_rented_is_said_before_the_first_rent(pod: dict, words: str) -> None:
    here = scene(host(1), capacity_wait_minutes=10, **pod)
    with pytest.raises(UserError, match=f"(?s){words}"):
        provision(here.run, ["sft"])
    assert here.market.orders == [] and here.run.clock.slept == []


def test_a_pod_of_the_run_is_adopted_and_not_checked_twice() -> None:
    board = MemoryBoard(rows=[row(NAME, f"id-{NAME}", fit=True, executor="ex-1")])
    here = scene(host(1), board=board)
    here.market.listed[f"id-{NAME}"] = living()
    assert provision(here.run, ["sft"]).name == NAME
    assert here.market.orders == [] and here.links[0].said == ["worker"]


def test_a_pod_that_the_listing_lacks_is_found_by_its_id() -> None:
    here = scene(host(1), board=MemoryBoard(rows=[row(NAME, f"id-{NAME}", fit=True)]))
    here.market.listed[f"id-{NAME}"] = living()
    here.market.hidden.add(f"id-{NAME}")
    found = living_pod(here.run)
    assert found is not None and found.name == NAME


def test_a_rent_that_nobody_saw_the_end_of_is_asked_about_before_another_is_made() -> None:
    here = scene(host(1))
    first = scene(host(1), board=here.board)
    first.market.fails = {"ex-1": NO_ANSWER}
    with pytest.raises(ControlPlaneError):
        provision(first.run, ["sft"])
    assert here.board.rows[0]["state"] == "INTENT"
    here.market.settled[NAME] = living()
    assert provision(here.run, ["sft"]).name == NAME
    assert here.market.orders == [], "adopted, not rented again"


def test_an_intent_that_rented_nothing_is_closed_and_its_name_not_used_again() -> None:
    here = scene(host(1))
    here.board.rows = [
        row(
            NAME,
            None,
            state="INTENT",
            intent={"name": NAME, "executor_id": "ex-1", "key": "k", "endpoint": "/", "payload": {}, "at": 1.9e9},
        )
    ]
    assert provision(here.run, ["sft"]).name == "ts-r-sft-a2"
    assert here.board.rows[0]["state"] == "REFUSED"


def test_of_two_pods_the_newest_is_kept_and_the_other_given_back() -> None:
    here = scene(host(1))
    for number in (1, 2):
        pod = living(f"ts-r-sft-a{number}")
        here.market.listed[pod.id] = pod
        here.board.rows.append(row(pod.name, pod.id))
    assert living_pod(here.run).name == "ts-r-sft-a2"  # type: ignore[union-attr]
    assert here.market.released == [NAME] and here.board.hosts == {}


def test_a_pod_that_another_prefect_api_rented_for_a_run_of_the_same_id_is_never_touched() -> None:
    here = scene(host(1))
    here.market.listed[f"id-{NAME}"] = living()
    with pytest.raises(Refused, match=f"{NAME}.*another one steers.*--run-id"):
        provision(here.run, ["sft"])
    release_pods.fn(here.run, None)
    assert here.market.orders == [] and [pod.name for pod in here.market.pods()] == [NAME]


def test_a_pod_that_appears_late_under_a_name_of_ours_is_adopted() -> None:
    here = scene(
        host(1), board=MemoryBoard(rows=[row(NAME, None, state="REFUSED", ended_at="2030-01-01T00:00:00+00:00")])
    )
    here.market.listed[f"id-{NAME}"] = living()
    assert provision(here.run, ["sft"]).name == NAME


def test_nothing_is_rented_when_the_intent_cannot_be_written_down() -> None:
    here = scene(host(1))
    here.run.ledger.rows()
    here.board.write_ledger = lambda rows: (_ for _ in ()).throw(NO_ANSWER)  # type: ignore[method-assign]
    with pytest.raises(ControlPlaneError):
        provision(here.run, ["sft"])
    assert here.market.pods() == []


def test_a_budget_that_is_used_up_rents_nothing_more() -> None:
    here = scene(host(1), budget_usd=3.0)
    here.board.rows = [row(NAME, "old", ended_at="2030-01-01T01:00:00+00:00", cost_usd=2.999, state="ENDED")]
    with pytest.raises(RunEnded, match=r"spent \$3\.00 of its budget of \$3\.00") as caught:
        provision(here.run, ["sft"])
    assert caught.value.state == "Budget reached" and here.market.orders == []


def lost_spot(minutes_ago: float, now: float) -> dict:
    ended = datetime.fromtimestamp(now - minutes_ago * 60, UTC).isoformat()
    return row("ts-r-sft-a1", "old", tier="spot", why="vanished", ended_at=ended, cost_usd=0.1, state="ENDED")


def test_spot_first_takes_spot_then_secure_after_losses_then_spot_again() -> None:
    hosts = (host(1, 1.0, tier="secure"), host(2, 2.0, tier="spot"))
    assert provision(scene(*hosts, tier="spot-first").run, ["sft"]).row.executor_id == "ex-2"
    here = scene(*hosts, tier="spot-first", spot_losses_per_hour=2)
    here.board.rows = [lost_spot(5, here.run.clock.now()), lost_spot(50, here.run.clock.now())]
    assert provision(here.run, ["sft"]).row.executor_id == "ex-1"
    here = scene(*hosts, tier="spot-first", spot_losses_per_hour=2)
    here.board.rows = [lost_spot(5, here.run.clock.now()), lost_spot(70, here.run.clock.now())]
    assert provision(here.run, ["sft"]).row.executor_id == "ex-2"


def test_a_warm_pod_that_fits_is_taken_over_with_fresh_services_and_a_preflight() -> None:
    here = scene(host(1))
    pod = living("ts-before-sft-a4")
    here.market.listed[pod.id] = pod
    here.board.warm[pod.name] = WarmPod(pod.name, pod.id, "NVIDIA H200", 1, "default volume none", 2.0, 1.95e9)
    assert provision(here.run, ["sft"]).name == "ts-before-sft-a4"
    assert here.market.orders == [] and here.board.warm[pod.name].claimed_by == "r"
    assert here.links[0].said == ["preflight", "worker"]


@pytest.mark.parametrize(
    "changes",
    [
        {"gpu": "NVIDIA A100"},
        {"gpu_count": 2},
        {"start": "other volume none"},
        {"price_per_hour": 9.0},
        {"until": 1.9e9 + 60},
        {"claimed_by": "x"},
    ],
)
def test_a_warm_pod_that_does_not_fit_is_left(changes: dict) -> None:
    here = scene(host(1))
    values = {
        "gpu": "NVIDIA H200",
        "gpu_count": 1,
        "start": "default volume none",
        "price_per_hour": 2.0,
        "until": 1.95e9,
    }
    here.board.warm["ts-b-sft-a4"] = WarmPod("ts-b-sft-a4", "id-b", **{**values, **changes})
    assert provision(here.run, ["sft"]).name == NAME


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


def test_no_two_runs_can_have_the_same_pod_name_and_the_name_tells_the_run() -> None:
    groups = (["sft"], ["rl"], ["sft", "rl"])
    runs = ("b1", "b1-sft", "b1-rl", "b1-sft-a1", "b1-sftrl")
    names = {pod_name(run, group, number): run for run in runs for group in groups for number in (1, 2)}
    assert len(names) == len(runs) * len(groups) * 2
    assert {name: run_of(name) for name in names} == names


def test_a_recipe_that_is_too_big_for_the_disk_blames_the_host_for_minutes_only() -> None:
    small = [Check("disk space", "80 GB in /", "at least 400 GB (2 checkpoints of 200 GB)", ok=False)]
    here = scene(host(1, 1.0), host(2, 2.0), link={"ex-1": {"checks": small}}, bad_host_hours=6)
    provision(here.run, ["sft"])
    assert [order.executor_id for order in here.market.orders] == ["ex-1", "ex-2"]
    assert here.board.hosts["ex-1"].until - here.run.clock.now() <= 600


def test_a_host_rests_for_the_first_line_of_a_reason() -> None:
    here = scene(host(1))
    rest(here.run, "executor", "it would not boot: " + "no disk " * 60 + "\nTraceback of 30 lines")
    why = here.board.resting()["executor"].why
    assert why.startswith("it would not boot: no disk") and why.endswith(" disk\u2026") and len(why) <= 300
