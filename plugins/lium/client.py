"""A Lium account, seen through the unmodified SDK: rent a pod once, list, look up, extend, give back.

The SDK knows the API; this knows what a run needs on top: the pod's name as the write-ahead intent (whoever starts
again finds the pod by it and does not pay twice), a server-side end on every pod, deleting what is already gone as
success, waiting as long as Lium asks, and one error tree. Watching many pods is `poller.py`'s, deciding about their
life `liveness.py`'s, and choosing what to rent the caller's.
"""

import ipaddress
import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from plugins.errors import CapacityError, ControlPlaneError, Refused, TrainstackError, UserError
from plugins.lium import clusters
from plugins.lium.boundary import NotFound, OutcomeUnknown, RateLimited, boundary, refused_afresh
from plugins.lium.clock import Clock, SystemClock
from plugins.lium.hosts import Fabric, Host, fabric_from_offer, host_from_info
from plugins.lium.offers import Estimate
from plugins.lium.pods import (
    Intent,
    PodEvent,
    PodRecord,
    PodRow,
    RentOrder,
    event_from_json,
    format_time,
    record_from_json,
    row_from_info,
    row_from_json,
)
from plugins.lium.rent_inputs import known_template, refuse_held_volume, template_for_image, volume_id

__all__ = ["Intent", "LiumAccount", "LiumSettings", "PodEvent", "PodRecord", "PodRow", "RentOrder", "guard"]

T = TypeVar("T")

RATE_LIMIT_PATIENCE_S = 60.0
LONGEST_PAUSE_S = 30.0
GOOD_LOOKS = 3  # how often a rent without an answer must look as if it never arrived before it counts as such
SETTLE_TIMEOUT_S = 120.0
KEY_KEPT_S = 20 * 3600.0  # Lium keeps idempotency keys for 24 hours; a later replay would be a new rent


@dataclass(frozen=True)
class LiumSettings:
    """Where the account is and what opens it. `base_url` ends in `/api`; `<ssh_key_path>.pub` lies beside the key."""

    base_url: str
    api_key: str = field(repr=False)
    ssh_key_path: Path

    @property
    def loopback(self) -> bool:
        """Whether the API is on this machine: no real money can be spent."""
        host = urlsplit(self.base_url).hostname or ""
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


def guard(settings: LiumSettings, max_price: float | None, budget: float | None) -> None:
    """Refuse to spend real money without an API key, a price ceiling (USD per GPU hour) and a budget (USD)."""
    if settings.loopback:
        return
    missing = [
        name
        for name, value in (("an API key", settings.api_key), ("a price ceiling", max_price), ("a budget", budget))
        if not value or (isinstance(value, float | int) and value <= 0)
    ]
    if missing:
        raise Refused(f"{settings.base_url} costs real money: the recipe or the settings lack {', '.join(missing)}")


class LiumAccount:
    """One account. Every method raises errors of `plugins/errors.py` only; ControlPlaneError means: wait, ask again."""

    def __init__(self, settings: LiumSettings, *, clock: Clock | None = None, lium: Any = None) -> None:
        """lium: the SDK's client, if not a new one for these settings."""
        self.settings = settings
        self._clock = clock or SystemClock()
        self._lium: Any = lium or _sdk(settings)

    # -- reading --------------------------------------------------------------------------------------------------

    def pods(self, prefix: str = "", *, patient: bool = True) -> list[PodRow]:
        """List the account's pods whose name starts with `prefix`; `patient=False` raises RateLimited at once.

        The nodes of a cluster are one row.
        """
        return [row for row in clusters.fold(self._listed(patient)) if row.name.startswith(prefix)]

    def find(self, name: str) -> PodRow | None:
        """Return the pod of this name: the one that can still live if there are several, else None."""
        rows = sorted((row for row in self.pods() if row.name == name), key=_terminal_then_age)
        return rows[0] if rows else None

    def look_up(self, pod_id: str) -> PodRow | None:
        """Ask for one pod by id, past the listing; None if Lium answers 404."""
        try:
            raw = self._ask(f"look up pod {pod_id}", lambda: self._lium.pod(pod_id))
        except NotFound:
            return None
        with boundary(f"look up pod {pod_id}"):
            return row_from_json(raw)

    def look_up_all(self, ids: Sequence[str]) -> PodRow | None:
        """Ask for every node of a pod past the listing, and put them together; None when all of them are gone."""
        return clusters.of_ids(ids, {one: self.look_up(one) for one in ids})

    def record(self, pod_id: str) -> PodRecord | None:
        """What the pod was and what it cost, also after its end; None if Lium has no record of it."""
        try:
            raw = self._ask(f"read the record of pod {pod_id}", lambda: self._lium.pod_record(pod_id))
        except NotFound:
            return None
        with boundary(f"read the record of pod {pod_id}"):
            return record_from_json(raw)

    def events(self, pod_id: str) -> list[PodEvent]:
        """The pod's event log, oldest first, also after its end; empty if there is none."""
        raw = self._ask(f"read the events of pod {pod_id}", lambda: self._lium.pod_events(pod_id))
        return [event_from_json(item) for item in raw]

    def cause(self, pod_id: str) -> str | None:
        """Why the pod failed or ended, from its newest event that says so. Never raises: it is read on failures."""
        try:
            return next((event.cause for event in reversed(self.events(pod_id)) if event.cause), None)
        except TrainstackError:
            return None

    # -- the market -----------------------------------------------------------------------------------------------

    def hosts(self) -> list[Host]:
        """Every host that is listed now, whatever its GPU."""
        return [host_from_info(info) for info in self._ask("list hosts", self._lium.ls)]

    def fabrics(self) -> list[Fabric]:
        """Fast networks with hosts that are wholly free and can be rented together as one cluster."""
        return [fabric_from_offer(offer) for offer in self._ask("list clusters", self._lium.clusters)]

    def unknown_gpu(self, name: str) -> list[str] | None:
        """The GPU names that Lium knows if `name` is none of them; None when it is, or when nobody answers."""
        try:
            known: list[str] | None = self._ask("list GPU types", lambda: self._lium.unknown_gpu_type(name))
        except TrainstackError:
            return None
        return known

    def estimate(self, executor_id: str, template_id: str | None) -> Estimate | None:
        """How long a boot would take there and whether the image lies on the host; None when Lium does not say."""
        if template_id is None:
            return None
        try:
            raw = self._ask(
                "estimate a boot",
                lambda: self._lium.get_deployment_estimate(executor_id=executor_id, template_id=template_id),
                patient=False,
            )
        except TrainstackError:
            return None
        seconds, cached = raw.get("estimated_seconds"), raw.get("is_cached_template")
        return Estimate(
            seconds=float(seconds) if isinstance(seconds, int | float) else None,
            cached=cached if isinstance(cached, bool) else None,
        )

    def balance(self) -> float | None:
        """USD left on the account; None when Lium does not say."""
        found: float | None = self._ask("read the balance", self._lium.balance_or_none)
        return found

    def template_for(
        self,
        image: str,
        note: Callable[[str], None] = lambda _: None,
        sleep: Callable[[float], None] | None = None,
    ) -> str:
        """Id of a private template that runs `image`, found or made and waited for (see `rent_inputs.py`).

        sleep: how to wait; one that raises ends the waiting.
        """
        return template_for_image(self._lium, self._ask, image, note=note, sleep=sleep or self._clock.sleep)

    def known_template(self, image: str) -> str | None:
        """Id of the template that `template_for` would find; None when it would make one."""
        return known_template(self._lium, self._ask, image)

    def volume_for(self, wanted: str, own_names: Collection[str] = ()) -> str:
        """Id of a volume, found or made. UserError: unknown, ambiguous, or held by a pod that is not ours."""
        found = volume_id(self._lium, self._ask, wanted)
        refuse_held_volume(self._lium, self._ask, found, wanted, own_names)
        return found

    def check_volume(self, wanted: str) -> None:
        """UserError for a volume that `volume_for` would refuse. Makes nothing."""
        if not wanted.startswith("new:"):
            self.volume_for(wanted)

    # -- changing -------------------------------------------------------------------------------------------------

    def rent(self, order: RentOrder, journal: Callable[[Intent], None]) -> PodRow:
        """Rent one pod on this host, or one cluster; `journal` writes the intent down right before it is sent.

        CapacityError: the host is gone or refuses. UserError: no money, no right, no SSH key, volume held elsewhere.
        ControlPlaneError: no answer; the intent tells `settle` what was asked.
        """
        if not self.settings.loopback and (not self.settings.api_key or not order.ceiling):
            raise Refused(f"pod {order.name}: {self.settings.base_url} costs real money: set an API key and a ceiling")
        if order.others:
            return self._rent_cluster(order, journal)
        key = str(uuid.uuid4())
        intents: list[Intent] = []
        unwritten: list[Exception] = []

        def before_send(request: dict[str, Any]) -> None:
            endpoint, payload = str(request["endpoint"]), dict(request["payload"])
            intent = Intent(order.name, order.executor_id, key, endpoint, payload, self._clock.now())
            try:
                journal(intent)
            except Exception as error:  # whatever it is, nothing may be rented that is not written down
                unwritten.append(error)
                raise
            intents.append(intent)

        try:
            with boundary(f"rent pod {order.name}"):
                made = self._lium.up(
                    executor_id=order.executor_id,
                    name=order.name,
                    template_id=order.template_id,
                    volume_id=order.volume_id,
                    gpu_count=order.gpu_count,
                    termination_hours=order.termination_hours,
                    idempotency_key=key,
                    confirmed_only=True,
                    before_send=before_send,
                )
        except TrainstackError as error:
            if unwritten and isinstance(unwritten[0], TrainstackError):
                raise unwritten[0] from None
            if unwritten:
                raise ControlPlaneError(f"pod {order.name} was not rented: {unwritten[0]}") from unwritten[0]
            if isinstance(error, NotFound):
                raise CapacityError(f"{error}: host, template or volume is gone") from error
            if not isinstance(error, OutcomeUnknown) or not intents:
                raise
            found = self.settle(intents[0])
            if found is None:
                raise CapacityError(f"rent pod {order.name}: the request was lost and rented nothing") from error
            return found
        return self._row_of([str(made["id"])], order.name, order.executor_id, unseen="PENDING")

    def settle(self, intent: Intent) -> PodRow | None:
        """Find out what became of a rent whose answer nobody has: its pod (it may have ended by now), or None.

        The same request is sent again with the same key: Lium answers with what it did the first time, or does it now.
        ControlPlaneError: still not known after `SETTLE_TIMEOUT_S`; a pod that was rented ends at its server-side end.
        """
        began, fresh, pause_s = self._clock.monotonic(), 0, 1.0
        replayable = self._clock.now() - intent.at < KEY_KEPT_S
        problem = "Lium does not answer"
        while True:
            try:
                listed = True
                row = self.find(intent.name)
                if row is not None and len(row.ids) == clusters.size_of(intent):
                    return row
            except (ControlPlaneError, UserError) as error:  # a key that is refused now says nothing about then
                listed, problem = False, str(error)
            try:
                ids = self._replay(intent) if replayable else None
                if ids is not None:
                    return self._row_of(ids, intent.name, intent.executor_id, unseen="DELETED")
                fresh += listed
            except CapacityError:
                return None  # the stored answer: it rented nothing
            except ControlPlaneError as error:
                problem = str(error)
            if fresh >= GOOD_LOOKS:
                return None
            if self._clock.monotonic() - began >= SETTLE_TIMEOUT_S:
                raise ControlPlaneError(
                    f"whether pod {intent.name} was rented is not known ({problem}). Ask again later: a pod that "
                    "appears is adopted, or ends by itself at its scheduled time"
                )
            self._clock.sleep(pause_s)
            pause_s = min(pause_s * 2, 15.0)

    def extend(self, pod_id: str, until: datetime) -> bool:
        """Set the time at which Lium removes the pod by itself; False if the pod is gone already.

        After a pod has booted, Lium sets the end that came with the rent (boot + `termination_hours`) over an earlier
        one: whoever steers the run must extend again once the pod is ready.
        """
        time_text = format_time(until)
        try:
            self._ask(
                f"set the end of pod {pod_id}",
                lambda: self._lium.schedule_termination(pod_id, termination_time=time_text),
            )
        except NotFound:
            return False
        return True

    def release(
        self, name: str, ids: Collection[str] = (), *, cluster_id: str | None = None, timeout_s: float = 120.0
    ) -> list[str]:
        """Give back every pod of this name, and these ids whatever the listing shows; look until none is left.

        A cluster is removed as one thing first, then what is left of it one by one. A pod that is gone counts as given
        back. Returns the ids of the pods that were there. ControlPlaneError: not certain within `timeout_s`.
        """
        released: set[str] = set()
        unasked = set(ids)  # these are deleted once without looking: both listing and look-up may be late
        began, pause_s, problem = self._clock.monotonic(), 0.2, "it is still listed"
        while True:
            try:
                if cluster_id is not None:
                    released.update(self._delete_cluster(cluster_id, name))
                    cluster_id = None
                for pod_id in sorted(unasked):
                    if self._delete(pod_id, name):
                        released.add(pod_id)
                    unasked.discard(pod_id)
                mine = [row for row in self._listed() if row.name == name]
                living = {row.id for row in mine}
                living |= {pod_id for pod_id in ids if pod_id not in living and self.look_up(pod_id) is not None}
                if not living:
                    return sorted(released)
                for listed_cluster in sorted({row.cluster_id for row in mine if row.cluster_id}):
                    released.update(self._delete_cluster(listed_cluster, name))
                for pod_id in living:
                    self._delete(pod_id, name)
                released |= living
            except ControlPlaneError as error:
                problem = str(error)
            if self._clock.monotonic() - began >= timeout_s:
                raise ControlPlaneError(
                    f"pod {name} could not be given back within {timeout_s:.0f} s ({problem}); it may still cost "
                    "money: look at `lium ps`; it ends by itself at its scheduled time"
                )
            self._clock.sleep(pause_s)
            pause_s = min(pause_s * 2, 5.0)

    # -- steps ----------------------------------------------------------------------------------------------------

    def _listed(self, patient: bool = True) -> list[PodRow]:
        """The rows as the listing has them, each node of a cluster by itself."""
        return [row_from_info(info) for info in self._ask("list pods", self._lium.ps, patient=patient)]

    def _rent_cluster(self, order: RentOrder, journal: Callable[[Intent], None]) -> PodRow:
        with boundary(f"rent cluster {order.name}"):
            payload = clusters.request_of(self._lium, order)
        key = str(uuid.uuid4())
        intent = Intent(order.name, order.executor_id, key, clusters.ENDPOINT, payload, self._clock.now())
        try:
            journal(intent)
        except TrainstackError:
            raise
        except Exception as error:  # whatever it is, nothing may be rented that is not written down
            raise ControlPlaneError(f"cluster {order.name} was not rented: {error}") from error
        try:
            with boundary(f"rent cluster {order.name}"):
                ids = clusters.send(self._lium, intent)
        except NotFound as error:
            raise CapacityError(f"{error}: a host or the template is gone") from error
        except ControlPlaneError as error:
            found = self.settle(intent)
            if found is None:
                raise CapacityError(f"rent cluster {order.name}: the request was lost and rented nothing") from error
            return found
        return self._row_of(ids, order.name, order.executor_id, unseen="PENDING")

    def _replay(self, intent: Intent) -> list[str] | None:
        """Send a rent again under its key: the pods' ids, or None when it was refused as a new request.

        CapacityError: the first request was refused. ControlPlaneError: that is not known.
        """
        from lium.sdk.exceptions import LiumError, LiumRentOutcomeUnknownError

        if intent.endpoint == clusters.ENDPOINT:
            try:
                with boundary(f"ask what became of the rent of cluster {intent.name}"):
                    return clusters.send(self._lium, intent)
            except (CapacityError, UserError, NotFound):
                return None  # the stored answer or a new refusal: the SDK does not tell them apart here
        question = LiumRentOutcomeUnknownError(
            "what became of this rent",
            idempotency_key=intent.key,
            pod_name=intent.name,
            executor_id=intent.executor_id,
            endpoint=intent.endpoint,
            payload=intent.payload,
        )
        with boundary(f"ask what became of the rent of pod {intent.name}"):
            try:
                return [str(self._lium._replay_rent(question)["id"])]
            except LiumRentOutcomeUnknownError as error:
                if refused_afresh(error):
                    return None
                raise
            except LiumError as refusal:  # anything else that the SDK lets through is the stored answer
                raise CapacityError(f"the rent of pod {intent.name} was refused: {refusal}") from refusal

    def _row_of(self, ids: Sequence[str], name: str, executor_id: str, *, unseen: str) -> PodRow:
        """The pod as its look-up shows it, or what the rent said; `unseen`: its status when the look-up says 404."""
        nodes = {}
        for number, one in enumerate(ids):
            node = None if len(ids) == 1 else number
            said = PodRow(id=one, name=name, status=unseen, executor_id=None if number else executor_id, node=node)
            try:
                nodes[one] = self.look_up(one) or said
            except ControlPlaneError:
                nodes[one] = replace(said, status="PENDING")
        row = clusters.of_ids(ids, nodes)
        assert row is not None
        return row

    def _delete(self, pod_id: str, name: str) -> bool:
        """End a pod; False when it was gone already."""
        with suppress(NotFound):
            self._ask(f"give back pod {name}", lambda: self._lium.down(PodRow(id=pod_id, name=name, status="")))
            return True
        return False

    def _delete_cluster(self, cluster_id: str, name: str) -> list[str]:
        """End a cluster's pods at once; those that are left, if any, are ended one by one."""
        try:
            return self._ask(f"give back cluster {name}", lambda: clusters.delete(self._lium, cluster_id))
        except (NotFound, CapacityError):  # it is gone, or a member is just being made
            return []

    def _ask(self, what: str, call: Callable[[], T], *, patient: bool = True) -> T:
        """Call the SDK; on 429 wait as long as Lium asks, up to a minute in all."""
        waited_s, pause_s = 0.0, 2.0
        while True:
            try:
                with boundary(what):
                    return call()
            except NotFound as error:
                if self.settings.loopback and not self.settings.base_url.rstrip("/").endswith("/api"):
                    raise NotFound(
                        f"{error} (the address of Lium's API ends in /api: {self.settings.base_url})"
                    ) from error
                raise
            except RateLimited as error:
                pause_s = min(max(pause_s, error.retry_after_s or 0.0), LONGEST_PAUSE_S)
                if not patient or waited_s + pause_s > RATE_LIMIT_PATIENCE_S:
                    raise
                self._clock.sleep(pause_s)
                waited_s, pause_s = waited_s + pause_s, pause_s * 2


def _sdk(settings: LiumSettings) -> Any:
    from lium import Lium
    from lium.sdk import Config

    return Lium(
        Config(
            api_key=settings.api_key,
            base_url=settings.base_url.rstrip("/"),
            ssh_key_path=settings.ssh_key_path.expanduser(),
        )
    )


def _terminal_then_age(row: PodRow) -> tuple[bool, datetime]:
    return row.terminal, row.created_at or datetime.max.replace(tzinfo=UTC)
