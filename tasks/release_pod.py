"""Give the run's pods back: always, on success, failure, cancel or crash, and as often as asked.

It goes by the name's prefix and not by an id, so it also finds a pod whose rent was never answered.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from prefect import task
from prefect.cache_policies import NO_CACHE

from plugins.errors import ControlPlaneError
from plugins.lium.pods import PodRow
from tasks.pod_ledger import ids_of
from tasks.provision_pod import pods_of
from tasks.retry import outside_failed
from tasks.run import PodLink, Run


@task(
    name="release-pod",
    retries=5,
    retry_delay_seconds=[1, 2, 5, 15, 30],
    retry_condition_fn=outside_failed,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def release_pods(run: Run, link: PodLink | None) -> float:
    """End every pod of the run and return what all its pods ever cost, in USD. Safe to repeat.

    Pods are found by their name in Lium's listing, by their id in the ledger (a listing may lack one), and by the
    intents whose outcome nobody heard of. What Prefect is told about it comes after all of them are gone.
    """
    if link is not None:
        link.close()
    strays = {intent.name: run.account.settle(intent) for intent in run.ledger.unsettled()}
    mine = {row["name"] for row in run.ledger.rows()} - run.ledger.handed_on()
    listed = [pod for pod in pods_of(run.account, run.run_id) if pod.name in mine]
    ours = {pod.name: set(pod.ids) for pod in listed}
    clusters = {pod.name: pod.cluster_id for pod in listed if pod.cluster_id}
    for row in run.ledger.open():
        ours.setdefault(row["name"], set()).update(ids_of(row))
        if row["cluster"]:
            clusters.setdefault(row["name"], row["cluster"])
    for name, pod_id in _claimed(run):
        ours.setdefault(name, set()).add(pod_id)
    for pod in strays.values():
        if pod is not None:
            ours.setdefault(pod.name, set()).update(pod.ids)
    for name, ids in ours.items():
        run.let_go(*ids)
        run.poller.unwatch(name)
        if run.account.release(name, ids, cluster_id=clusters.get(name)):
            run.log(f"pod {name} given back")
    if not run.board.answers():
        return run.money().spent
    try:
        _write_down(run, strays, list(ours))
    except ControlPlaneError as error:
        run.log(f"WARNING the pods are given back, but it could not be noted: {error}")
    return run.money().spent


def _claimed(run: Run) -> list[tuple[str, str]]:
    """Warm pods that this run claimed, also when it was cut off before it wrote that down."""
    if not run.board.answers():
        return []
    try:
        return [(warm.name, warm.pod_id) for warm in run.board.warm_pods() if warm.claimed_by == run.run_id]
    except ControlPlaneError:
        return []


def _write_down(run: Run, strays: dict[str, PodRow | None], names: list[str]) -> None:
    for name, pod in strays.items():
        if pod is None:
            run.ledger.refused(name, "the request never arrived, or was refused")
        else:
            run.ledger.rented(pod)
    if names:
        run.ledger.ended(names, run.account)
    for name in names:
        run.board.drop_queue(name)
        run.board.forget_warm(name)


@contextmanager
def undisturbed(say: str) -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM off while pods are given back: an impatient second Ctrl-C must not leave one behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def wait_for_it(_number: int, _frame: FrameType | None) -> None:
        print(f"\n{say}", flush=True)

    before = {number: signal.signal(number, wait_for_it) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
