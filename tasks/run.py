"""One recipe being carried through by this process: what every task needs, and the threads that keep hold of it.

Two threads work as long as the process lives: one notices that the pipeline's flow run was cancelled
(a flow started as plain `python` gets no signal for that), the other pushes the pod's dead-man end forward.
"""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType

from blocks.recipe import Recipe
from plugins.checkpoints.stores import CheckpointStore
from plugins.errors import ControlPlaneError, TrainstackError
from plugins.lium.client import LiumAccount
from plugins.lium.poller import PodPoller

STATE_LOOK_S = 1.0
CANCEL_TYPES = (StateType.CANCELLING, StateType.CANCELLED)


class RunCancelled(TrainstackError):
    """The pipeline's flow run was cancelled, or the person pressed Ctrl-C."""


class Run:
    """A run in the hands of this process. Use as a context manager: it starts and ends the steering thread and
    poller."""

    def __init__(
        self,
        run_id: str,
        recipe: Recipe,
        flow_run_id: UUID,
        *,
        client: SyncPrefectClient,
        account: LiumAccount,
        store: CheckpointStore,
        log: Callable[[str], None],
    ) -> None:
        self.run_id, self.recipe, self.flow_run_id = run_id, recipe, flow_run_id
        self.client, self.account, self.store, self.log = client, account, store, log
        self.poller = PodPoller(account)
        self.lineage: dict[str, str] = {}
        self._pods: set[str] = set()
        self._cancelled = threading.Event()
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, name="cancel-watch", daemon=True),
            threading.Thread(target=self._hold_on, name="dead-man-switch", daemon=True),
        ]

    def __enter__(self) -> "Run":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed.set()
        self.poller.close()
        for thread in self._threads:
            thread.join(timeout=2)  # one that waits for a server that is down ends with the process

    @property
    def dead_man(self) -> timedelta:
        """How long a pod outlives the last sign of this process."""
        return timedelta(minutes=self.recipe.pod.dead_man_minutes)

    def cancelled(self) -> bool:
        """Whether somebody cancelled the pipeline."""
        return self._cancelled.is_set()

    def check_cancelled(self) -> None:
        """Raise RunCancelled once somebody cancelled the pipeline."""
        if self.cancelled():
            raise RunCancelled(f"Run {self.run_id} was cancelled.")

    def nap(self, seconds: float) -> None:
        """Sleep in the main thread, woken by a cancel."""
        self._cancelled.wait(seconds)
        self.check_cancelled()

    def hold(self, pod_id: str) -> None:
        """Push this pod's dead-man end forward from now on."""
        self._pods.add(pod_id)

    def let_go(self, pod_id: str) -> None:
        """Stop pushing this pod's end forward."""
        self._pods.discard(pod_id)

    def _watch(self) -> None:
        """Notice a cancel. A server that is down makes its client wait for minutes, so nothing else is done here."""
        with get_client(sync_client=True) as client:
            while not self._closed.wait(STATE_LOOK_S):
                try:
                    state = client.read_flow_run(self.flow_run_id).state
                except Exception as error:  # whatever the client raises, the server did not answer: keep steering
                    self.log(f"WARNING Prefect does not answer ({type(error).__name__}); the run goes on")
                    continue
                if state is not None and state.type in CANCEL_TYPES:
                    self._cancelled.set()

    def _hold_on(self) -> None:
        """Push the pods' dead-man end forward, whatever Prefect does."""
        every_s = min(60.0, self.dead_man.total_seconds() / 3)
        while not self._closed.wait(every_s):
            self._push()

    def _push(self) -> None:
        for pod_id in list(self._pods):
            try:
                self.account.extend(pod_id, datetime.now(UTC) + self.dead_man)
            except ControlPlaneError as error:
                self.log(f"WARNING the pod's end could not be pushed forward, trying again: {error}")
            except TrainstackError as error:
                self.log(f"WARNING {error}")
                self.let_go(pod_id)


def is_cancelling(run: Run) -> bool:
    """Whether the pipeline's own flow run is being cancelled right now, asked and not remembered."""
    state = run.client.read_flow_run(run.flow_run_id).state
    return state is not None and state.type in CANCEL_TYPES
