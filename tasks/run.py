"""One recipe being carried through by this process: what every task needs, and the duties that keep hold of it.

Two duties go on as long as the process lives: one notices that the pipeline's flow run was cancelled (a flow started
as plain `python` gets no signal for that), the other pushes the pods' server-side end forward and watches the money.
"""

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from blocks.recipe import Recipe, check_run_id
from plugins.checkpoints.stores import CheckpointStore
from plugins.errors import ControlPlaneError, TrainstackError
from plugins.lium import budget
from plugins.lium.budget import Money
from plugins.lium.client import LiumAccount
from plugins.lium.clock import Background, Clock, SystemClock
from plugins.lium.liveness import Probe
from plugins.lium.pods import PodRow
from plugins.lium.poller import PodPoller
from plugins.lium.preflight import Check
from tasks.board import Board
from tasks.pod_ledger import PodLedger

STATE_LOOK_S = 1.0
PUSH_S = 60.0
COST_SHOWN_S = 60.0
SOON = timedelta(seconds=60)  # Lium refuses an end in the past


class RunCancelled(TrainstackError):
    """The pipeline's flow run was cancelled, or the person pressed Ctrl-C."""


class RunEnded(TrainstackError):
    """The run is ended on purpose before its work is done: the budget is used up, or its pod does nothing.

    `state` names the flow run's final state.
    """

    def __init__(self, message: str, state: str) -> None:
        super().__init__(message)
        self.state = state


class PodLink(Protocol):
    """A pod in hand: the connection to it and what is asked over it. `pod_link.py` has the real one, over SSH."""

    row: PodRow

    @property
    def name(self) -> str:
        """The pod's name; also the name of its queue and its worker."""
        ...

    def preflight(self) -> list[Check]:
        """Look whether the pod is what was paid for. Raises ControlPlaneError."""
        ...

    def ensure_worker(self) -> None:
        """See that supervisor, Ray and worker run, and wait for the worker. Raises ControlPlaneError, PodLost."""
        ...

    def ensure_supervisor(self) -> None:
        """Start the supervisor unless it lives. Raises ControlPlaneError, PodLost."""
        ...

    def stop_services(self) -> None:
        """End everything of ours on the pod. Raises ControlPlaneError."""
        ...

    def probe(self, attempt_id: object) -> Probe:
        """Whether an attempt's process runs on the pod. Raises ControlPlaneError when SSH does not answer."""
        ...

    def check_nodes(self) -> None:
        """Whether the further nodes of a cluster live. Raises PodLost, ControlPlaneError, each naming the node."""
        ...

    def shut_out(self) -> None:
        """Take the pod's way to Prefect away: it is lost, and whatever it still says is too late."""
        ...

    def upload(self, files: Sequence[tuple[Path, str]]) -> list[str]:
        """Put (path, digest) on the pod; returns where they are there. Raises ControlPlaneError."""
        ...

    def close(self) -> None:
        """End the connection; the pod lives on."""
        ...


class Run:
    """A run in the hands of this process. Use as a context manager: it begins and ends the duties and the poller."""

    def __init__(
        self,
        run_id: str,
        recipe: Recipe,
        *,
        board: Board,
        account: LiumAccount,
        store: CheckpointStore,
        log: Callable[[str], None],
        open_link: Callable[["Run", PodRow], PodLink],
        clock: Clock | None = None,
    ) -> None:
        self.run_id, self.recipe = check_run_id(run_id), recipe
        self.board, self.account, self.store, self.log = board, account, store, log
        self.open_link = open_link
        self.clock: Clock = clock or SystemClock()
        self.poller = PodPoller(account, clock=self.clock)
        self.ledger = PodLedger(board, self.clock.now)
        self.lineage: dict[str, str] = {}
        self._held: set[str] = set()
        self._woken = threading.Event()
        self._cancelled = False
        self._end: RunEnded | None = None
        self._warned = False
        self._cost_shown = 0.0
        self._duties: list[Background] = []

    def __enter__(self) -> "Run":
        self.ledger.rows()  # what was spent before counts from the first moment
        self._duties = [
            self.clock.duty("cancel-watch", self._watch),
            self.clock.duty("dead-man-switch", self._push),
        ]
        return self

    def __exit__(self, *exc: object) -> None:
        self.poller.close()
        for duty in self._duties:
            duty.stop()  # one that waits for a server that is down ends with the process

    @property
    def dead_man(self) -> timedelta:
        """How long a pod outlives the last sign of this process."""
        return timedelta(minutes=self.recipe.pod.dead_man_minutes)

    def check(self) -> None:
        """Raise RunCancelled once somebody cancelled the pipeline, RunEnded once the run must end."""
        if self._cancelled:
            raise RunCancelled(f"Run {self.run_id} was cancelled.")
        if self._end is not None:
            raise self._end

    def nap(self, seconds: float) -> None:
        """Sleep in the main line, woken by a cancel or an end; shows what was spent now and then."""
        self.clock.sleep(seconds, self._woken)
        self.check()
        self._show_cost()

    def end(self, why: RunEnded) -> None:
        """Let the main line end the run at its next look."""
        self._end = self._end or why
        self._woken.set()

    def hold(self, *pod_ids: str) -> None:
        """Push the server-side end of these pods (the nodes of one) forward from now on, and at once."""
        self._held.update(pod_ids)
        self.extend(*pod_ids)

    def let_go(self, *pod_ids: str) -> None:
        """Stop pushing the end of these pods forward."""
        self._held.difference_update(pod_ids)

    def extend(self, *pod_ids: str) -> bool:
        """Set the pods' server-side end: a dead-man period from now, or sooner when the money ends sooner.

        False when one of them is gone.
        """
        now = datetime.fromtimestamp(self.clock.now(), UTC)
        end = now + self.dead_man
        left_s = self.money().left_s
        if left_s is not None:
            end = min(end, max(now + timedelta(seconds=left_s), now + SOON))
        there = [self.account.extend(pod_id, end) for pod_id in pod_ids]
        return all(there)

    def money(self) -> budget.Account:
        """What was spent and what the budget still buys."""
        return budget.account(self.ledger.charges(), self.recipe.pod.budget_usd, self.clock.now())

    def _watch(self) -> float:
        """Notice a cancel. A server that is down makes its client wait for minutes, so nothing else is done here."""
        try:
            if self.board.cancelling():
                self._cancelled = True
                self._woken.set()
        except Exception as error:  # whatever Prefect's client raises: the next look must come all the same
            self.log(f"WARNING Prefect does not answer ({type(error).__name__}: {error}); the run goes on")
        return STATE_LOOK_S

    def _push(self) -> float:
        """Push the pods' end forward, whatever Prefect does; end the run before its money is gone."""
        for pod_id in list(self._held):
            try:
                self.extend(pod_id)
            except ControlPlaneError as error:
                self.log(f"WARNING the pod's end could not be pushed forward, trying again: {error}")
            except Exception as error:  # a duty that ends would let every pod of the run end with it
                self.log(f"WARNING {type(error).__name__}: {error}")
        return min(PUSH_S, self.dead_man.total_seconds() / 3, self._watch_money())

    def _watch_money(self) -> float:
        """Warn and end by the budget; returns the seconds until the next look is due."""
        stand = self.money()
        if stand.money is Money.OUT:
            assert stand.budget is not None
            self.end(
                RunEnded(
                    f"Run {self.run_id} spent ${stand.spent:.2f} of its budget of ${stand.budget:.2f} (pod.budget_usd) "
                    "and was stopped in time for a last sync. Raise the budget and start again with the same run id "
                    "to go on from the last checkpoint.",
                    "Budget reached",
                )
            )
        elif stand.money is Money.LOW and not self._warned:
            self._warned = True
            self.log(f"WARNING ${stand.spent:.2f} of the budget of ${stand.budget:.2f} are spent (pod.budget_usd)")
        if stand.left_s is None or stand.budget is None:
            return PUSH_S
        return max(1.0, stand.left_s - budget.last_sync_s(stand.budget, stand.rate))

    def _show_cost(self) -> None:
        if self.clock.monotonic() - self._cost_shown < COST_SHOWN_S or not self.ledger.known():
            return
        self._cost_shown = self.clock.monotonic()
        stand = self.money()
        row = {"spent_usd": round(stand.spent, 4), "usd_per_hour": stand.rate, "budget_usd": stand.budget}
        row["lasts_minutes"] = None if stand.left_s is None else round(stand.left_s / 60, 1)
        try:
            self.board.show_table("cost", [row], f"What {self.run_id} has cost so far", live=True)
        except ControlPlaneError as error:
            self.log(f"WARNING {error}")
