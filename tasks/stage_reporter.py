"""The stage's voice and ear, on a thread of its own: heartbeat and progress out, cancel and forced states in.

A Prefect server that is down makes its client wait for minutes; on this thread that costs only news, never training.
Only the newest heartbeat is kept while the server does not answer.
"""

import threading
from collections.abc import Callable
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType

from plugins.lium.gpu_use import gpu_use_here, mean_percent
from tasks import artifacts
from tasks.stage_contract import HEARTBEAT_SUFFIX, Heartbeat, artifact_key, describe

STATE_POLL_S = 2.0
PAGE_S = 300.0  # drawing takes a second of one processor
ENDED_FROM_OUTSIDE = frozenset(
    {StateType.CANCELLING, StateType.CANCELLED, StateType.CRASHED, StateType.FAILED, StateType.COMPLETED}
)


class StageReporter:
    """Publishes heartbeats of one attempt and notices when somebody else ends its flow run.

    Use as a context manager inside the flow. `ended_from_outside()` is the reason to stop, or None. `page` makes the
    stage's page of curves, which goes out now and then while the stage trains.
    """

    def __init__(self, run_id: str, flow_run_id: UUID, *, interval_s: float, log: Callable[[str], None]) -> None:
        self._run_id = run_id
        self._flow_run_id = flow_run_id
        self._interval_s = interval_s
        self._log = log
        self._beat: Heartbeat | None = None
        self._reason: str | None = None
        self._closed = threading.Event()
        self.page: Callable[[], str | None] | None = None
        self._page_id: UUID | None = None
        self._page_in_s = PAGE_S
        self._beat_id: UUID | None = None
        self._progress_id: UUID | None = None
        self._thread = threading.Thread(target=self._run, name="stage-reporter", daemon=True)

    def __enter__(self) -> "StageReporter":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed.set()
        self._thread.join(timeout=5)  # a server that is down must not hold up the end of the stage

    def beat(self, beat: Heartbeat) -> None:
        """Replace the heartbeat that goes out next."""
        self._beat = beat

    def ended_from_outside(self) -> str | None:
        """Why the stage must stop although it has not finished, e.g. 'Cancelling'; None while all is well."""
        return self._reason

    def _run(self) -> None:
        with get_client(sync_client=True) as client:
            waited = self._interval_s  # the first beat goes out at once
            while True:
                last = self._closed.is_set()
                try:
                    self._look(client)
                    if last or waited >= self._interval_s:
                        self._publish(client)
                        self._page_in_s -= waited
                        waited = 0.0
                    if self._page_in_s <= 0 and not last:  # the last one is the flow's
                        self._page_in_s = PAGE_S
                        self._publish_page(client)
                except Exception as error:  # any client error here is news about the server, not about the training
                    self._log(f"Prefect does not take news at the moment ({type(error).__name__}: {error})")
                if last:
                    return
                pause = min(STATE_POLL_S, self._interval_s)
                self._closed.wait(pause)
                waited += pause

    def _look(self, client: SyncPrefectClient) -> None:
        state = client.read_flow_run(self._flow_run_id).state
        if state is not None and state.type in ENDED_FROM_OUTSIDE and not self._closed.is_set():
            self._reason = state.name or state.type.value

    def _publish_page(self, client: SyncPrefectClient) -> None:
        text = self.page() if self.page else None
        if text is None or self._beat is None:
            return
        if self._page_id is None:
            key = artifact_key(self._run_id, self._beat.stage, "curves")
            self._page_id = artifacts.put_markdown(client, self._flow_run_id, key, text)
        else:
            artifacts.update(client, self._page_id, text)

    def _publish(self, client: SyncPrefectClient) -> None:
        if self._beat is None:
            return
        beat = self._beat.model_copy(update={"gpu_percent": mean_percent(gpu_use_here())})
        row = beat.model_dump(mode="json")
        if self._beat_id is None:
            key = artifact_key(self._run_id, beat.stage, "progress")
            self._progress_id = artifacts.put_progress(
                client, self._flow_run_id, key, f"{beat.stage} of {self._run_id}"
            )
            key = artifact_key(self._run_id, beat.stage, HEARTBEAT_SUFFIX)
            self._beat_id = artifacts.put_table(client, self._flow_run_id, key, [row], f"{beat.stage}: where it is now")
        else:
            artifacts.update(client, self._beat_id, artifacts.table_data([row]))
        if self._progress_id is not None and beat.of and beat.iteration is not None:
            done = round(100 * (beat.iteration + 1) / beat.of, 1)
            artifacts.update(client, self._progress_id, done, f"{beat.stage} of {self._run_id}: {describe(beat)}")
