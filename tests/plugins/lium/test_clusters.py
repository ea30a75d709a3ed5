"""Several pods as one: rows put together, one rent under a written intent, one release, a node that is gone."""

from datetime import UTC, datetime, timedelta

import pytest

from plugins.errors import CapacityError, ControlPlaneError, PodLost, UserError
from plugins.lium.client import Intent, LiumAccount, PodRow, RentOrder
from plugins.lium.clusters import called, fold, of_ids, trouble
from plugins.lium.poller import PodPoller, wait_ready
from tests.plugins.lium.road import LISTING, LOST_ANSWER, LOST_REQUEST, NOT_HERE, refusal

CLUSTER_RENT = "POST /api/executors/cluster/rent"
REMOVE = "DELETE /api/clusters/*"


# -- rows -------------------------------------------------------------------------------------------------------------


def node(index: int, status: str = "RUNNING", **changes) -> PodRow:
    made = {"ssh_host": "127.0.0.1", "price_per_hour": 2.0, "gpu_count": 8, "cluster_id": "c", "node": index}
    return PodRow(f"id-{index}", "ts-r-sft-a1", status, **{**made, **changes})


def test_the_rows_of_a_cluster_are_one_row_of_all_its_nodes() -> None:
    single = PodRow("other", "ts-x-sft-a1", "RUNNING")
    row, rest = fold([node(1), single, node(0)])
    assert rest == single and rest.ids == ("other",)
    assert (row.id, row.ids, row.price_per_hour, row.gpu_count) == ("id-0", ("id-0", "id-1"), 4.0, 8)
    assert row.reachable and not row.terminal and trouble(row) is None


@pytest.mark.parametrize(
    ("statuses", "together", "terminal"),
    [
        (("RUNNING", "PENDING"), "PENDING", False),
        (("PENDING", "BROKEN"), "BROKEN", True),
        (("FAILED", "RUNNING"), "FAILED", True),
    ],
)
def test_a_cluster_is_as_well_as_its_worst_node(statuses: tuple[str, str], together: str, terminal: bool) -> None:
    (row,) = fold([node(index, status) for index, status in enumerate(statuses)])
    assert (row.status, row.terminal, row.reachable) == (together, terminal, False)
    ended = trouble(row)
    assert (ended is not None) is terminal
    assert ended is None or called(row, ended).startswith(f"node {statuses.index(together)} ")


def test_the_end_of_a_cluster_is_known_when_that_of_each_node_is() -> None:
    soon = datetime(2030, 1, 1, tzinfo=UTC)
    both = [node(0, removal_scheduled_at=soon + timedelta(hours=1)), node(1, removal_scheduled_at=soon)]
    assert fold(both)[0].removal_scheduled_at == soon
    assert fold([both[0], node(1)])[0].removal_scheduled_at is None, "a node without an end goes on costing"


def test_a_node_that_is_gone_makes_its_cluster_one_that_has_ended() -> None:
    row = of_ids(["id-0", "id-1"], {"id-0": None, "id-1": node(1)})
    assert row is not None and row.terminal and row.ids == ("id-0", "id-1")
    assert of_ids(["id-0", "id-1"], {"id-0": None, "id-1": None}) is None


# -- the rent ---------------------------------------------------------------------------------------------------------


def order(world, name: str, fabric: str = "fabric-a") -> RentOrder:
    found = next(one for one in world.account.fabrics() if one.id == fabric)
    first, *others = [host.executor_id for host in found.hosts]
    return RentOrder(name, first, gpu_count=8, others=tuple(others))


def there(world, name: str) -> list[str]:
    """Ids of the nodes that there really are."""
    return [pod_id for row in world.account.pods() if row.name == name for pod_id in row.ids]


@pytest.fixture(autouse=True)
def _hasty(hasty_sdk) -> None: ...


def test_a_cluster_is_rented_under_an_intent_that_was_written_before(world, road, far, name: str) -> None:
    seen: list[tuple[Intent, int]] = []
    row = far.rent(order(world, name), lambda intent: seen.append((intent, len(road.seen(CLUSTER_RENT)))))
    ((intent, sent_before),) = seen
    (crossing,) = road.seen(CLUSTER_RENT)
    assert sent_before == 0 and (crossing.key, crossing.body) == (intent.key, intent.payload)
    assert len(row.ids) == 2 and sorted(row.ids) == sorted(there(world, name))
    assert (row.node, row.members[0].node, row.overlay_ip) == (0, 1, "127.0.0.1")
    assert {one.executor_id for one in row.nodes} == set(intent.payload["executor_uuids"])
    assert far.release(name, row.ids, cluster_id=row.cluster_id) == sorted(row.ids)
    assert len(road.seen(REMOVE)) == 1 and there(world, name) == []


def test_nothing_is_rented_when_the_intent_cannot_be_written(world, road, far, name: str) -> None:
    def journal(_: Intent) -> None:
        raise OSError("no space left")

    with pytest.raises(ControlPlaneError, match="no space left"):
        far.rent(order(world, name), journal)
    assert road.seen(CLUSTER_RENT) == [] and there(world, name) == []


@pytest.mark.parametrize("loss", [LOST_ANSWER, LOST_REQUEST, NOT_HERE])
def test_whatever_is_lost_on_the_way_one_cluster_is_rented(world, road, far, name: str, loss) -> None:
    road.put(CLUSTER_RENT, loss, times=1)
    row = far.rent(order(world, name), world.intents.append)
    assert len(world.intents) == 1 and len(row.ids) == 2
    assert sorted(there(world, name)) == sorted(row.ids)
    world.account.release(name)


def test_a_rent_that_nobody_heard_of_is_found_by_its_intent_whatever_the_listing_shows(world, road, far, name) -> None:
    row = far.rent(order(world, name), world.intents.append)
    (intent,) = world.intents
    again = far.settle(intent)
    assert again is not None and again.ids == row.ids, "by its name"
    road.put(LISTING, NOT_HERE)
    again = far.settle(intent)
    assert again is not None and again.ids == row.ids, "by its key"
    road.clear()
    world.account.release(name)


def test_a_cluster_that_lost_a_node_before_anybody_heard_of_it_is_known_as_broken(world, far, name: str) -> None:
    row = far.rent(order(world, name), world.intents.append)
    world.emulator.kill_pod(row.ids[0])
    found = far.settle(world.intents[0])
    assert found is not None and found.terminal and found.ids == row.ids
    assert far.look_up_all(row.ids).terminal
    assert far.release(name, row.ids, cluster_id=row.cluster_id) == [row.ids[1]]
    assert far.look_up_all(row.ids) is None


def test_a_refusal_rents_nothing(world, far, name: str) -> None:
    wanted = order(world, name)
    held = far.rent(wanted, world.intents.append)
    with pytest.raises(CapacityError, match="not free now"):
        far.rent(RentOrder(f"{name}-b", wanted.executor_id, gpu_count=8, others=wanted.others), world.intents.append)
    assert far.settle(world.intents[1]) is None
    world.account.release(name, held.ids)
    with pytest.raises(CapacityError, match="gone"):
        far.rent(RentOrder(name, "0" * 8, gpu_count=8, others=("1" * 8,)), world.intents.append)


def test_an_account_without_money_is_told_so(world, road, far, name: str) -> None:
    no_money = "Insufficient balance: requires at least $14.00, your balance is $1.00"
    road.put(CLUSTER_RENT, refusal(403, "insufficient_balance", no_money))
    with pytest.raises(UserError, match="top the account up"):
        far.rent(order(world, name), world.intents.append)


# -- what becomes of it -----------------------------------------------------------------------------------------------


def test_a_cluster_is_ready_when_every_node_is_and_a_node_that_vanishes_is_named(world, name: str) -> None:
    row = world.account.rent(order(world, name), world.intents.append)
    poller = PodPoller(world.account, interval_s=0.2, boot_interval_s=0.1)
    try:
        ready = wait_ready(world.account, row, 30, poller)
        assert ready.reachable and ready.ids == row.ids and len({one.ssh_port for one in ready.nodes}) == 2
        world.emulator.kill_pod(row.ids[1])
        with pytest.raises(PodLost, match=r"node 1 .* vanished .*spot reclaim"):
            while wait_ready(world.account, row, 30, poller):
                poller.wait(1.0)
        assert poller.snapshot(name).missing == row.ids[1]
    finally:
        poller.close()
    assert world.account.release(name, row.ids, cluster_id=row.cluster_id) == [row.ids[0]]


def test_a_node_that_does_not_boot_is_named_with_lium_s_cause(world, name: str) -> None:
    world.emulator.faults({"boot_fail": 1})
    row = world.account.rent(order(world, name), world.intents.append)
    poller = PodPoller(world.account, boot_interval_s=0.1)
    try:
        with pytest.raises(PodLost, match=r"node \d .* is CREATION_FAILED: the emulator was asked to fail"):
            wait_ready(world.account, row, 30, poller)
    finally:
        poller.close()
    world.account.release(name, row.ids, cluster_id=row.cluster_id)
    assert there(world, name) == []


def test_what_the_removal_of_a_cluster_leaves_is_removed_one_by_one(world, road, far, name: str) -> None:
    row = far.rent(order(world, name), world.intents.append)
    road.put(REMOVE, refusal(409, "create_in_progress", "a member is still being created"), times=2)
    assert far.release(name, row.ids, cluster_id=row.cluster_id) == sorted(row.ids)
    assert there(world, name) == []


def test_every_node_gets_its_end(world, name: str) -> None:
    row = world.account.rent(order(world, name), world.intents.append)
    end = datetime.now(UTC) + timedelta(minutes=30)
    assert all([world.account.extend(pod_id, end) for pod_id in row.ids])  # noqa: C419 - all of them, always
    (listed,) = [one for one in world.account.pods() if one.name == name]
    assert listed.removal_scheduled_at is not None
    world.account.release(name, row.ids, cluster_id=row.cluster_id)


def test_fabrics_are_listed_with_the_hosts_that_are_wholly_free(world) -> None:
    fabrics = {one.id: one for one in LiumAccount(world.settings).fabrics()}
    assert {"fabric-a", "fabric-b"} <= set(fabrics)
    found = fabrics["fabric-b"]
    assert (found.kind, found.node_count) == ("infiniband", 2)
    assert all(host.gpu == "NVIDIA B200" and host.gpu_count == 8 for host in found.hosts)
