"""The Lium SDK's client as one process sees it: its methods and its exceptions, in front of the simulated market.

It stands where `LiumAccount(lium=...)` takes the real `lium.Lium`. Retries, the search after a lost rent and the replay
of one follow lium.io 0.32.0 (`sdk/client.py`: with_retry, _rent, _replay_rent); each HTTP request can meet a trouble.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import requests
from lium.sdk.exceptions import (
    LiumError,
    LiumInsufficientBalanceError,
    LiumNotFoundError,
    LiumRateLimitError,
    LiumRentOutcomeUnknownError,
    LiumServerError,
)
from lium.sdk.models import ExecutorInfo, PodInfo, Template, VolumeInfo

from plugins.lium.pods import parse_time
from tests.faults.lium_rows import executor_info, pod_info, pod_json
from tests.faults.lium_wire import NO_ANSWER, Wire, limited
from tests.faults.machines import SimPod

PER_MINUTE = 60
GPU_TYPES = ["A100", "H100", "H200", "RTX4090"]


class SimLium(Wire):
    """One process's client. Every call takes a little time, and any of them may be this process's last."""

    # -- reading --------------------------------------------------------------------------------------------------

    def ls(self, **_: Any) -> list[ExecutorInfo]:
        """List hosts."""
        hosts = self._read("ls", ("list_hosts",), self._world.market.offered_hosts)
        for host in hosts:
            self._world.watch.host_listed(host)
        return [executor_info(host) for host in hosts]

    def ps(self, *, api_key_id: str | None = None) -> list[PodInfo]:
        """List pods; at most 60 times a minute for the account."""
        return self._retried("ps", ("list",), self._rows)

    def pod(self, pod_id: str) -> dict[str, Any]:
        """GET /pods/{id}."""
        return self._read(f"pod {pod_id[:4]}", ("look",), lambda: pod_json(self._known(pod_id)))

    def pod_record(self, pod_id: str) -> dict[str, Any]:
        """GET /pods/{id}/record."""
        return self._read(f"record {pod_id[:4]}", ("record",), lambda: self._record(pod_id))

    def pod_events(self, pod_id: str) -> list[dict[str, Any]]:
        """GET /pods/{id}/events: asked once, [] for an unknown pod."""
        pod = self._request(f"events {pod_id[:4]}", ("events",), lambda: self._world.market.pods.get(pod_id))
        return list(pod.events) if pod is not None else []

    def unknown_gpu_type(self, gpu_short: str) -> list[str] | None:
        """None when the name is known, or when nobody answers."""
        try:
            self._read("machines", ("machines",), lambda: None)
        except (LiumError, requests.RequestException):
            return None
        return None if gpu_short.upper() in GPU_TYPES else GPU_TYPES

    def balance_or_none(self) -> float | None:
        """USD left."""
        return self._read("balance", ("me",), lambda: self._world.market.balance)

    def balance(self) -> float:
        """USD left."""
        return self.balance_or_none() or 0.0

    def me(self) -> dict[str, Any]:
        """GET /users/me."""
        return {"id": "user-1", "balance": self.balance_or_none()}

    def get_deployment_estimate(self, executor_id: str, template_id: str) -> dict[str, Any]:
        """How long a boot would take."""
        host = self._read("estimate", ("estimate",), lambda: self._world.market.hosts.get(executor_id))
        return {"estimated_seconds": host.plan.boot_s if host else None, "is_cached_template": None}

    def templates(self, filter: str | None = None, only_my: bool = False) -> list[Template]:
        """The account's templates."""
        return self._read("templates", ("templates",), lambda: list(self._world.templates))

    def volumes(self) -> list[VolumeInfo]:
        """The account's volumes."""
        return self._read("volumes", ("volumes",), lambda: list(self._world.volumes))

    # -- changing -------------------------------------------------------------------------------------------------

    def create_template(self, name: str, docker_image: str, **more: Any) -> Template:
        """POST /templates."""
        made = Template(self._world.market.new_id(), name, name, docker_image, "latest", "UBUNTU", "VERIFY_SUCCESS")
        return self._change("make template", ("template",), lambda: self._world.templates.append(made) or made)

    def volume_create(self, name: str, *, description: str = "") -> VolumeInfo:
        """POST /volumes."""
        made = VolumeInfo(self._world.market.new_id(), name, name, description, "")
        return self._change("make volume", ("volume",), lambda: self._world.volumes.append(made) or made)

    def schedule_termination(self, pod: Any, *, termination_time: str) -> dict[str, Any]:
        """POST /pods/{id}/schedule-removal; sent again when it got no answer."""
        pod_id = pod["id"] if isinstance(pod, dict) else getattr(pod, "id", pod)
        return self._retried(
            f"extend {pod_id[:4]}", ("extend", "change"), lambda: self._schedule(pod_id, termination_time)
        )

    def down(self, pod: Any, feedback: str | None = None, rating: int | None = None) -> dict[str, Any]:
        """DELETE /pods/{id}."""
        return self._change(f"down {pod.id[:4]}", ("delete", "change"), lambda: self._delete(pod.id))

    def up(
        self,
        *,
        executor_id: str,
        name: str,
        template_id: str | None = None,
        volume_id: str | None = None,
        gpu_count: int | None = None,
        termination_hours: int | None = None,
        idempotency_key: str | None = None,
        confirmed_only: bool = False,
        before_send: Callable[[dict[str, Any]], None] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Rent a pod on a host, as the SDK does it: look, send, look for it by name, send once more."""
        hosts = self._read("ls", ("list_hosts",), self._world.market.offered_hosts)
        if all(host.id != executor_id for host in hosts):
            raise ValueError(f"Node '{executor_id}' is not in the current listing (looked up by UUID and HUID).")
        key = idempotency_key or self._world.market.new_id()
        payload = {"pod_name": name, "template_id": template_id, "volume_id": volume_id, "gpu_count": gpu_count}
        payload |= {"termination_hours": termination_hours, "user_public_key": ["ssh-ed25519 AAAA"]}
        request = {"endpoint": f"/executors/{executor_id}/rent", "payload": payload, "idempotency_key": key}
        before = {row.id for row in self._rows_or_none() or []}
        if before_send is not None:
            before_send(request)
        unknown = _unknown(request, name, executor_id)
        try:
            answer = self._rent(request, executor_id)
        except NO_ANSWER as first:
            found = self._find(name, before)
            if found is not None and confirmed_only:
                raise unknown("a new pod of that name is listed", [found]) from first
            if found is not None:
                return {"id": found, "name": name, "executor_id": executor_id}
            self._process.sleep(1.0)
            answer = self._rent_again(request, executor_id, first, unknown)
        return {"id": answer["pod_id"], "name": name, "status": "PENDING", "executor_id": executor_id}

    def _replay_rent(self, error: LiumRentOutcomeUnknownError) -> dict[str, Any]:
        """Send the rent behind `error` again with the same key: the kept outcome, or unknown."""
        request = {"payload": error.payload, "idempotency_key": error.idempotency_key}
        executor_id = str(error.endpoint).split("/")[2]
        unknown = _unknown({**request, "endpoint": error.endpoint}, error.pod_name, error.executor_id)
        replayed: list[bool] = []
        try:
            answer = self._rent(request, executor_id, replayed, "replay")
        except (requests.RequestException, LiumError) as refusal:
            if replayed == [True] and not isinstance(refusal, NO_ANSWER):
                raise
            raise unknown(f"replaying did not establish it ({refusal})", error.candidates) from refusal
        return {"id": answer["pod_id"], "name": error.pod_name, "executor_id": error.executor_id}

    def _request(self, what: str, tags: Any, effect: Any = None, *_: Any, **__: Any) -> Any:
        """One HTTP request: `what` is its name in the journal. GET as the SDK's own `_request` is served too."""
        if what == "GET":
            return SimpleNamespace(json=lambda: self._raw(str(tags)))
        return self._http(what, tags, effect)

    # -- effects --------------------------------------------------------------------------------------------------

    def _rows(self) -> list[PodInfo]:
        world = self._world
        now, looks = world.clock._now, world.listings
        while looks and looks[0] <= now - 60.0:
            looks.popleft()
        if len(looks) >= PER_MINUTE:
            raise limited(looks[0] + 60.0 - now)
        looks.append(now)
        return [pod_info(pod) for pod in world.market.listed_pods()]

    def _known(self, pod_id: str) -> SimPod:
        pod = self._world.market.pods.get(pod_id)
        if pod is None or pod.removed_at is not None:
            raise LiumNotFoundError(f"Resource not found: Pod {pod_id} not found")
        return pod

    def _record(self, pod_id: str) -> dict[str, Any]:
        pod = self._world.market.pods.get(pod_id)
        if pod is None:
            raise LiumNotFoundError(f"Resource not found: Pod {pod_id} not found")
        return self._world.market.record(pod)

    def _schedule(self, pod_id: str, time_text: str) -> dict[str, Any]:
        pod, time = self._known(pod_id), parse_time(time_text)
        self._world.watch.touched(pod, "extended")
        if time is None or time.timestamp() <= self._world.clock.now():
            raise LiumError("API error 400: removal_scheduled_at is in the past")
        if pod.running_at is not None and pod.pushed_at is None:
            pod.pushed_at = self._world.clock.now()
        self._world.market.schedule_end(pod, time.timestamp())
        return {"success": True}

    def _delete(self, pod_id: str) -> dict[str, Any]:
        pod = self._known(pod_id)
        self._world.watch.touched(pod, "deleted")
        self._world.watch.ended_by_us(pod, "deleted")
        self._world.market.delete(pod)
        return {"success": True}

    # -- renting --------------------------------------------------------------------------------------------------

    def _rent(
        self, request: dict[str, Any], executor_id: str, replayed: list[bool] | None = None, what: str = "rent"
    ) -> dict[str, Any]:
        payload, world = request["payload"], self._world

        def effect() -> dict[str, Any]:
            if what == "rent" and not world.market.knows(request["idempotency_key"]):
                world.watch.rent_sent(executor_id)
            status, body, again = world.market.rent(request["idempotency_key"], executor_id, payload)
            if replayed is not None:
                replayed.append(again)
            if status != 200:
                raise _refusal(status, body)
            return body

        return self._http(f"{what} {payload['pod_name']} on {executor_id[:4]}", ("rent", "change"), effect)

    def _rent_again(
        self, request: dict[str, Any], executor_id: str, first: Exception, unknown: Callable[..., Exception]
    ) -> dict[str, Any]:
        try:
            return self._rent(request, executor_id)
        except (LiumError, requests.RequestException) as second:
            plain = isinstance(second, LiumError) and not isinstance(second, LiumServerError)
            if isinstance(first, LiumRateLimitError) and plain:
                raise
            raise unknown(f"no answer ({first}), and the repeat failed ({second})") from second

    def _find(self, name: str, before: set[str]) -> str | None:
        for _ in range(3):
            self._process.sleep(3.0)
            for row in self._rows_or_none() or []:
                if row.name == name and row.id not in before:
                    return str(row.id)
        return None

    def _rows_or_none(self) -> list[PodInfo] | None:
        try:
            return self.ps()
        except (requests.RequestException, LiumError):
            return None

    def _raw(self, path: str) -> list[dict[str, Any]]:
        if path == "/pods":
            return self._read("ps raw", ("list",), lambda: [pod_json(pod) for pod in self._world.market.listed_pods()])
        return [vars(template) for template in self.templates()]


def _refusal(status: int, body: dict[str, Any]) -> LiumError:
    """What the SDK makes of a refused request."""
    text, code = str(body["message"]), body.get("code")
    if status == 404:
        return LiumNotFoundError(f"Resource not found: {text}", code=code)
    if status == 403:
        return LiumInsufficientBalanceError(text, code=code)
    return LiumError(f"API error {status}: {text}", code=code)


def _unknown(request: dict[str, Any], name: str | None, executor_id: str | None) -> Callable[..., LiumError]:
    def make(message: str, candidates: list[str] | None = None) -> LiumError:
        return LiumRentOutcomeUnknownError(
            message,
            idempotency_key=request["idempotency_key"],
            pod_name=name,
            executor_id=executor_id,
            candidates=candidates,
            endpoint=request["endpoint"],
            payload=request["payload"],
            code="rent_outcome_unknown",
        )

    return make
