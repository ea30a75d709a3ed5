"""A cluster in hand: the link to node 0, and what the other nodes need besides.

    node 0      supervisor: Prefect worker, Ray head          the stage runs here
    node 1...   supervisor: Ray worker                        joins the head over the overlay address

Only node 0 reaches Prefect. The head's secret is read from it over SSH and goes to the others in their boot document,
on standard input. The nodes live and die together: whatever is wrong with one is wrong with all.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from plugins.errors import ControlPlaneError, PodLost, UserError
from plugins.lium import clusters
from plugins.lium.bootstrap import start_supervisor, stop_supervisor, supervisor_status
from plugins.lium.pods import PodRow
from plugins.lium.preflight import Check, preflight
from plugins.lium.tunnel import PodConnection
from plugins.rayjobs.settings import TOKEN
from tasks.api_door import ApiDoor
from tasks.nodes import node_name
from tasks.pod_link import PROBE_S, SshLink, check_store_is_shared, connect, limits_of, own_secrets, ray_argv
from tasks.pod_link import open_link as open_single
from tasks.run import Run

HEAD_READY_S = 150.0
JOINED = "trainstack/ray_head"  # on a further node: the head it was started for
T = TypeVar("T")


def open_link(run: Run, row: PodRow, door: ApiDoor) -> SshLink:
    """Connect to a pod, or to every node of a cluster, that is ready. PodLost: SSH does not answer."""
    if not row.members:
        return open_single(run, row, door)
    opened: list[PodConnection] = []
    try:
        for node in row.nodes:
            if node.overlay_ip is None:
                raise PodLost(f"Lium gives no address for {clusters.called(row, node)}: its nodes cannot meet")
            try:
                opened.append(connect(run, node))
            except PodLost as lost:
                raise PodLost(f"{clusters.called(row, node)}: {lost}") from lost
        check_store_is_shared(run, opened[0])
        return ClusterLink(run, row, opened, door)
    except BaseException:  # also Ctrl-C: their threads must not stay
        for connection in opened:
            connection.close()
        raise


class ClusterLink(SshLink):
    """The `PodLink` of a cluster."""

    def __init__(self, run: Run, row: PodRow, connections: Sequence[PodConnection], door: ApiDoor) -> None:
        super().__init__(run, row, connections[0], door)
        self._others = list(zip(row.members, connections[1:], strict=True))

    def preflight(self) -> list[Check]:
        """Look at every node; each row says whose it is."""
        run = self._run
        limits = limits_of(run.recipe, self.api_url)
        own = replace(limits, api_url=None)  # the other nodes do not reach Prefect
        looks = [lambda: preflight(self.connection, limits, run.clock.now)]
        looks += [lambda c=connection: preflight(c, own, run.clock.now) for _, connection in self._others]  # type: ignore[misc]
        found = _at_once(looks)
        return [
            replace(check, name=f"{node_name(index)}: {check.name}")
            for index, checks in enumerate(found)
            for check in checks
        ]

    def ensure_supervisor(self) -> None:
        """See that the services of every node run, and that the others' Ray is that of the head there is now."""
        super().ensure_supervisor()
        self._check_shared()
        address, token = self._head()
        for node, connection in self._others:
            self._join(node, connection, address, token)

    def check_nodes(self) -> None:
        """Whether the supervisors of the other nodes live.

        Raises PodLost that names the node whose supervisor is dead, ControlPlaneError that names one that is silent.
        """
        for node, connection in self._others:
            called = clusters.called(self.row, node)
            try:
                status = supervisor_status(connection, timeout_s=PROBE_S)
            except ControlPlaneError as error:
                raise ControlPlaneError(f"{called} does not answer over SSH: {error}") from error
            if status is None or not status["alive"]:
                raise PodLost(f"the supervisor of {called} is dead")

    def stop_services(self) -> None:
        """End everything of ours on all nodes, with the secrets in it."""
        for _, connection in self._others:
            stop_supervisor(connection)
        super().stop_services()

    def data_dir(self) -> str:
        """Where all nodes see it: slime may read the prompts on any of them."""
        return f"{self._shared}/data"

    def close(self) -> None:
        """End the connections; the nodes live on."""
        super().close()
        for _, connection in self._others:
            connection.close()

    @property
    def _shared(self) -> str:
        folder = self._run.recipe.pod.shared_dir
        assert folder is not None  # `check_nodes` refuses a recipe without one
        return folder

    def _check_shared(self) -> None:
        """Write a file on node 0 and look for it on the others. Raises UserError: no node would have a whole save."""
        probe = f"{self._shared}/.seen-by-{self.row.id}"
        made = self.connection.run(["sh", "-c", 'mkdir -p "${1%/*}" && : > "$1"', "sh", probe], timeout_s=30)
        if made.rc != 0:
            said = made.stderr.decode(errors="replace").strip()
            raise UserError(f"pod.shared_dir {self._shared} cannot be written on node 0 of {self.name}: {said}")
        try:
            for node, connection in self._others:
                if connection.run(["test", "-f", probe], timeout_s=30).rc != 0:
                    raise UserError(
                        f"pod.shared_dir {self._shared}: what node 0 wrote there is not seen on "
                        f"{clusters.called(self.row, node)}, so no node would have a whole checkpoint. It must be a "
                        "file system that all nodes mount at this path."
                    )
        finally:
            self.connection.run(["rm", "-f", probe], timeout_s=30)

    def _head(self) -> tuple[str, str]:
        """Address and secret of the Ray head, which takes some seconds to be there. Raises PodLost."""
        run = self._run
        began = run.clock.monotonic()
        while True:
            info = self.connection.read_if_exists("trainstack/ray/ray.json")
            token = self.connection.read_if_exists("trainstack/ray/ray-token")
            if info and token:
                return str(json.loads(info)["address"]), token.decode().strip()
            if run.clock.monotonic() - began > HEAD_READY_S:
                log = self.connection.run(["tail", "-n", "15", "trainstack/ray.log"], timeout_s=30).stdout
                raise PodLost(
                    f"the Ray head of cluster {self.name} did not start in {HEAD_READY_S:.0f} s. Its log's end:\n"
                    + log.decode(errors="replace")
                )
            run.nap(0.5)

    def _join(self, node: PodRow, connection: PodConnection, address: str, token: str) -> None:
        status = supervisor_status(connection, timeout_s=PROBE_S)
        if status is not None and status["alive"]:
            joined = connection.read_if_exists(JOINED)
            if joined is not None and joined.decode().strip() == address:
                return
            stop_supervisor(connection)  # it belongs to a head that was started anew since
        connection.run(["sh", "-c", f'mkdir -p trainstack && printf %s "$1" > {JOINED}', "sh", address], timeout_s=30)
        document = member_document(self._run, self.row, node, address, token)
        start_supervisor(connection, document, home=self._run.recipe.pod.home)
        self._run.log(f"{clusters.called(self.row, node)}: Ray joins {address}")


def member_document(run: Run, row: PodRow, node: PodRow, address: str, token: str) -> dict[str, Any]:
    """What the supervisor of a further node gets: Ray and the trainer's secrets, no way to Prefect and no store's."""
    recipe = run.recipe
    argv = [*ray_argv(recipe, "worker", row, node), "--head", address]
    env = {**own_secrets(recipe), "DO_NOT_TRACK": "1", "TRAINSTACK_RUN_ID": run.run_id, "TRAINSTACK_POD": row.name}
    services = [{"name": "ray", "argv": argv, "env": {TOKEN: token}}]
    return {"pod": row.name, "state_dir": "~/trainstack", "env": env, "services": services, "grace_s": 10}


def _at_once(looks: Sequence[Callable[[], T]]) -> list[T]:
    with ThreadPoolExecutor(len(looks)) as threads:
        return [look.result() for look in [threads.submit(look) for look in looks]]
