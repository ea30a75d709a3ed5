"""A Lium account, seen through the unmodified SDK: rent a pod once, list, look up, extend, give back.

The SDK knows the API; this knows what a run needs on top: the pod's name as the write-ahead intent (whoever starts
again finds the pod by it and does not pay twice), a server-side end on every pod, deleting what is already gone as
success, waiting as long as Lium asks, and one error tree. Watching many pods is `poller.py`'s, deciding about their
life `liveness.py`'s, and choosing what to rent the caller's.
"""

import difflib
import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from plugins.errors import CapacityError, ControlPlaneError, PodLost, Refused, TrainstackError, UserError
from plugins.lium.boundary import NotFound, OutcomeUnknown, RateLimited, boundary
from plugins.lium.pods import (
    PodEvent,
    PodRecord,
    PodRow,
    PodSpec,
    event_from_json,
    format_time,
    record_from_json,
    row_from_info,
    row_from_json,
)
from plugins.lium.rent_inputs import template_for_image, volume_id

__all__ = ["LiumAccount", "LiumSettings", "PodEvent", "PodRecord", "PodRow", "PodSpec", "guard"]

T = TypeVar("T")

RATE_LIMIT_PATIENCE_S = 60.0
LONGEST_PAUSE_S = 30.0
GOOD_LISTINGS = 3  # listings that must agree before a pod whose rent got no answer counts as not rented
SETTLE_TIMEOUT_S = 120.0


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

    def __init__(self, settings: LiumSettings, *, sleep: Callable[[float], None] = time.sleep) -> None:
        from lium import Lium
        from lium.sdk import Config

        self.settings = settings
        self._sleep = sleep
        self._lium: Any = Lium(
            Config(
                api_key=settings.api_key,
                base_url=settings.base_url.rstrip("/"),
                ssh_key_path=settings.ssh_key_path.expanduser(),
            )
        )

    # -- reading --------------------------------------------------------------------------------------------------

    def pods(self, prefix: str = "", *, patient: bool = True) -> list[PodRow]:
        """List the account's pods whose name starts with `prefix`; `patient=False` raises RateLimited at once."""
        rows = [row_from_info(info) for info in self._ask("list pods", self._lium.ps, patient=patient)]
        return [row for row in rows if row.name.startswith(prefix)]

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

    # -- changing -------------------------------------------------------------------------------------------------

    def rent(self, spec: PodSpec) -> PodRow:
        """Rent one pod of this name, or adopt the one that exists; then set its dead-man switch.

        CapacityError: nothing fits now. UserError: unknown GPU, template or volume, no money, no SSH key. PodLost: a
        pod of this name exists and has failed. ControlPlaneError: no answer; calling again adopts what was rented.
        """
        self._check(spec)
        row = self.find(spec.name)
        if row is None:
            row = self._rent_new(spec)
        if row.terminal:
            raise PodLost(f"pod {row.name} is {row.status}: {self.cause(row.id) or 'Lium gives no cause'}")
        if not self.extend(row.id, datetime.now(UTC) + timedelta(seconds=spec.dead_man_s)):
            raise PodLost(f"pod {row.name} was gone right after it was rented: {self.cause(row.id) or 'no cause'}")
        return row

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

    def release(self, name: str, *, timeout_s: float = 120.0, good_listings: int = 1) -> list[PodRow]:
        """Give back every pod of this name and look until none is listed; a pod that is gone counts as given back.

        `good_listings`: how many listings in a row must show none; ask for more after a rent without an answer, whose
        pod may appear late. Returns the pods that were there. ControlPlaneError: not certain within `timeout_s`.
        """
        released: dict[str, PodRow] = {}
        deadline = time.monotonic() + timeout_s
        clear, pause_s, problem = 0, 0.2, "it is still listed"
        while True:
            try:
                rows = [row for row in self.pods() if row.name == name]
                clear = 0 if rows else clear + 1
                for row in rows:
                    released[row.id] = row
                    self._delete(row)
            except ControlPlaneError as error:
                problem = str(error)
            if clear >= good_listings:
                return list(released.values())
            if time.monotonic() >= deadline:
                raise ControlPlaneError(
                    f"pod {name} could not be given back within {timeout_s:.0f} s ({problem}); it may still cost "
                    "money: look at `lium ps`; it ends by itself at its scheduled time"
                )
            self._sleep(pause_s)
            pause_s = min(pause_s * 2, 2.0)

    # -- steps ----------------------------------------------------------------------------------------------------

    def _check(self, spec: PodSpec) -> None:
        if spec.termination_hours < 1:
            raise UserError(f"pod {spec.name}: termination_hours is {spec.termination_hours}; it must be 1 or more")
        if not self.settings.loopback and (not self.settings.api_key or not spec.max_price_per_gpu_hour):
            raise Refused(f"pod {spec.name}: {self.settings.base_url} costs real money: set an API key and a ceiling")

    def _rent_new(self, spec: PodSpec) -> PodRow:
        self._check_gpu(spec)
        template_id = spec.template_id
        if template_id is None and spec.image is not None:
            template_id = template_for_image(self._lium, self._ask, spec.name, spec.image)
        arguments = {
            "name": spec.name,
            "gpu_type": spec.gpu_type,
            "gpu_count": spec.gpu_count,
            "max_price_per_gpu_hour": spec.max_price_per_gpu_hour,
            "template_id": template_id,
            "volume_id": volume_id(self._lium, self._ask, spec.volume) if spec.volume else None,
            "termination_hours": spec.termination_hours,
            "min_vram_gb": spec.min_vram_gb,
            "min_cpus": spec.min_cpus,
            "min_ram_gb": spec.min_ram_gb,
            "min_disk_gb": spec.min_disk_gb,
            "min_download_mbps": spec.min_download_mbps,
            "min_ports": spec.min_ports,
            "country": spec.country,
        }
        try:
            with boundary(f"rent pod {spec.name} ({spec.gpu_count}x {spec.gpu_type})"):
                result = self._lium.rent(**arguments)
        except NotFound as error:
            raise UserError(f"{error}: check template, image and volume of the recipe") from error
        except (OutcomeUnknown, RateLimited) as error:
            return self._settle(spec.name, error)
        return self._rented_row(spec, result)

    def _settle(self, name: str, error: ControlPlaneError) -> PodRow:
        """Find out whether a rent without an answer made a pod. Renting again here could pay twice."""
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        good = 0
        while good < GOOD_LISTINGS and time.monotonic() < deadline:
            if good:
                self._sleep(1.0)
            try:
                row = self.find(name)
            except ControlPlaneError:
                self._sleep(2.0)
                continue
            if row is not None:
                return row
            good += 1
        seen = f"{good} good listings show no pod of that name" if good else "the listing does not answer either"
        raise ControlPlaneError(f"{error}; {seen}. Ask again later: a pod that appears is adopted") from error

    def _rented_row(self, spec: PodSpec, result: Any) -> PodRow:
        """The new pod as it is listed, or what the rent itself said while the listing does not have it yet."""
        pod = result.pod
        if not pod or not pod.get("id"):
            raise CapacityError(f"rent pod {spec.name}: Lium chose a machine but rented none")
        try:
            row = self.find(spec.name)
        except ControlPlaneError:
            row = None
        return row or PodRow(
            id=str(pod["id"]),
            name=spec.name,
            status="PENDING",
            price_per_hour=result.price_per_hour,
            executor_id=result.executor.id,
            gpu_name=result.executor.machine_name,
            gpu_count=result.gpu_count,
            created_at=datetime.now(UTC),
        )

    def _check_gpu(self, spec: PodSpec) -> None:
        known: list[str] | None = self._lium.unknown_gpu_type(spec.gpu_type)  # None: known, or nobody answers
        if known is None:
            return
        near = difflib.get_close_matches(spec.gpu_type.upper().replace(" ", ""), known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(f"Lium knows no GPU called {spec.gpu_type!r}: {hint}It has {', '.join(known)}")

    def _delete(self, row: PodRow) -> None:
        if row.status == "DELETING":
            return
        try:
            self._ask(f"give back pod {row.name}", lambda: self._lium.down(row))
        except NotFound:
            return

    def _ask(self, what: str, call: Callable[[], T], *, patient: bool = True) -> T:
        """Call the SDK; on 429 wait as long as Lium asks, up to a minute in all."""
        waited_s, pause_s = 0.0, 2.0
        while True:
            try:
                with boundary(what):
                    return call()
            except RateLimited as error:
                pause_s = min(max(pause_s, error.retry_after_s or 0.0), LONGEST_PAUSE_S)
                if not patient or waited_s + pause_s > RATE_LIMIT_PATIENCE_S:
                    raise
                self._sleep(pause_s)
                waited_s, pause_s = waited_s + pause_s, pause_s * 2


def _terminal_then_age(row: PodRow) -> tuple[bool, datetime]:
    return row.terminal, row.created_at or datetime.max.replace(tzinfo=UTC)
