"""Give the run's pods back: always, on success, failure, cancel or crash, and as often as asked.

It goes by the name's prefix and not by an id, so it also finds a pod whose rent was never answered.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from plugins.errors import ControlPlaneError
from tasks.control_plane import api_answers
from tasks.pod_ledger import PodLedger
from tasks.provision_pod import LivePod, pods_of
from tasks.run import Run
from tasks.stage_contract import WORK_POOL

LOOKS_FOR_A_CUT_RENT = 3


@task(
    name="release-pod",
    retries=5,
    retry_delay_seconds=[1, 2, 5, 15, 30],
    retry_condition_fn=lambda _task, _run, state: isinstance(state.result(raise_on_failure=False), ControlPlaneError),
    cache_policy=NO_CACHE,
    persist_result=False,
)
def release_pods(run: Run, live: LivePod | None) -> float:
    """End every pod of the run and return what all its pods ever cost, in USD. Safe to repeat.

    Without a pod in hand a rent may have been cut off on its way, so it is looked for more than once.
    """
    if live is not None:
        live.connection.close()
    released: list[str] = []
    for look in range(1 if live else LOOKS_FOR_A_CUT_RENT):
        time.sleep(1.0 if look else 0.0)
        for pod in pods_of(run.account, run.run_id):
            if not pod.terminal:
                run.let_go(pod.id)
                run.account.release(pod.name)
                released.append(pod.name)
                run.log(f"pod {pod.name} given back")
    if not api_answers(run.client):
        return 0.0
    for name in released:
        _drop_queue(run, name)
    return PodLedger(run.client, run.run_id, run.flow_run_id).close(run.account)


def _drop_queue(run: Run, name: str) -> None:
    with suppress(ObjectNotFound, PrefectHTTPStatusError):  # an empty queue left behind does no harm
        queue = run.client.read_work_queue_by_name(name, work_pool_name=WORK_POOL)
        run.client.delete_work_queue_by_id(queue.id)


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
