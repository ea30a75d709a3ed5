"""Whether every node of a cluster lives, while an attempt trains on it and after it has failed.

The heartbeat comes from node 0 and the listing may show a dead host for minutes, so the others are asked over SSH. And
a trainer that lost a node ends as one that failed: what looks like its own fault is asked about before it counts as it.
"""

from plugins.errors import ControlPlaneError, PodLost, TrainstackError
from plugins.lium import clusters
from tasks.run import PodLink, Run

LOOK_S = 15.0
SILENCE_LOOK_S = 2.0


class NodeWatch:
    """The watch over one attempt's nodes; on a single pod it sees nothing and asks nobody."""

    def __init__(self, run: Run, pod: PodLink) -> None:
        self._run, self._pod = run, pod
        self._next_look = run.clock.monotonic() + LOOK_S
        self._silent_since: float | None = None

    def lost(self) -> str | None:
        """Which node is lost, and why; None when none is, or when it is not yet time to ask."""
        if not self._pod.row.members or self._run.clock.monotonic() < self._next_look:
            return None
        self._next_look = self._run.clock.monotonic() + LOOK_S
        return self._asked()

    def lost_after_failure(self) -> str | None:
        """Which node was lost when the attempt failed; a silent one is waited for until it answers or is lost."""
        if not self._pod.row.members:
            return None
        while True:
            cause = self._gone() or self._asked()
            if cause is not None or self._silent_since is None:
                return cause
            self._run.nap(SILENCE_LOOK_S)

    def where(self, pod_id: str | None) -> str:
        """A node in words, to stand before what is said about it; '' on a single pod."""
        row = self._pod.row
        node = next((one for one in row.nodes if one.id == pod_id), None)
        return f"{clusters.called(row, node)}: " if node is not None and row.members else ""

    def _asked(self) -> str | None:
        now = self._run.clock.monotonic()
        try:
            self._pod.check_nodes()
        except PodLost as lost:
            return str(lost)
        except TrainstackError as error:
            if self._silent_since is None:
                self._silent_since = now
            if now - self._silent_since >= self._run.recipe.pod.unreachable_after_s:
                return f"{error} (for {now - self._silent_since:.0f} s)"
        else:
            self._silent_since = None
        return None

    def _gone(self) -> str | None:
        """Look every node up by its id."""
        row, account = self._pod.row, self._run.account
        for node in row.nodes:
            try:
                found = account.look_up(node.id)
            except ControlPlaneError:
                continue  # no news
            if found is None or found.terminal:
                state = "gone" if found is None else found.status
                return f"{clusters.called(row, node)} is {state}: {account.cause(node.id) or 'Lium gives no cause'}"
        return None
