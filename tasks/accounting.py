"""What a run's interruptions cost: every second of its wall clock, put under one heading.

    | rent | boot | preflight | restore | start | training | lost | detect | rent | boot | ... | redo | training |

From records (pods, attempts) to a `Report`, without Prefect. The headings (`stretches.Kind`) never overlap and leave
nothing out. What the records do not tell apart stands under UNKNOWN; a figure that cannot be known is None. Only a few
moments of an attempt are on record, so the time between two of them is shared evenly among the iterations trained in
between: the one approximation here, and wrong by less than an iteration for each loss.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from tasks.losses import Loss, loss_of
from tasks.save_interval import Expected
from tasks.stretches import POD, WAIT, Course, Kind, Stretch, lay_out

End = Literal["completed", "lost", "crashed", "trainer failed", "cancelled", "running"]
LOSSES = ("lost", "crashed", "trainer failed")


@dataclass(frozen=True)
class PodTimes:
    """One rented pod. Epoch seconds UTC; money in USD. ready_at: preflight passed and worker online."""

    name: str
    rented_at: float
    running_at: float | None
    ready_at: float | None
    ended_at: float | None
    price_per_hour: float | None
    cost_usd: float | None
    host: str | None
    tier: str | None

    def cost(self, now: float) -> float | None:
        """USD so far: the bill, else price times hours; None without either."""
        if self.cost_usd is not None or self.price_per_hour is None:
            return self.cost_usd
        until = now if self.ended_at is None else self.ended_at
        return self.price_per_hour * max(0.0, until - self.rented_at) / 3600


@dataclass(frozen=True)
class AttemptTimes:
    """One attempt of a stage. Epoch seconds UTC, iterations 0-based, None for what is not known.

    restored: iteration it went on from. first_iteration, last_iteration: first and newest that it trained. durable:
    newest that a store has. phases: seconds of `ray`, `restore`, `train` (which contains `upload`) and `upload`, in
    this order from started_at on. first_new_at: when it had finished its first iteration that no earlier attempt of
    the stage had trained. last_iteration_at: when last_iteration was finished. lost_at: last sign of life of an attempt
    that did not end by itself; detected_at: when it was declared lost. save_interval, save_cost_s: rollouts between its
    saves and seconds of each, where they differ from the run's.
    """

    stage: str
    number: int
    pod: str | None
    submitted_at: float
    started_at: float | None
    ended_at: float | None
    end: End
    restored: int | None = None
    first_iteration: int | None = None
    last_iteration: int | None = None
    durable: int | None = None
    phases: Mapping[str, float] = field(default_factory=dict)
    first_new_at: float | None = None
    lost_at: float | None = None
    detected_at: float | None = None
    last_iteration_at: float | None = None
    save_interval: int | None = None
    save_cost_s: float | None = None

    @property
    def row(self) -> str:
        """Name of its row in tables and pictures."""
        return f"{self.stage} {self.number}"

    @property
    def base(self) -> int | None:
        """The iteration it went on from, -1 for a cold start; None when that is not known."""
        return self.restored if self.first_iteration is None else self.first_iteration - 1

    @property
    def died_at(self) -> float | None:
        """The last moment it may have trained; None when it is not known, or runs."""
        if self.end == "lost" or self.lost_at is not None:
            return self.lost_at
        return self.ended_at

    @property
    def over_at(self) -> float | None:
        """When its end was known."""
        return self.ended_at if self.detected_at is None else self.detected_at

    @property
    def trainer_at(self) -> float | None:
        """When the trainer was started: after Ray and the restore."""
        phases = self.phases
        if self.started_at is None or "ray" not in phases or "restore" not in phases:
            return None
        return self.started_at + phases["ray"] + phases["restore"]


@dataclass(frozen=True)
class Report:
    """A run's account. Epoch seconds and seconds; money in USD.

    iterations: those in the final state; trained: all, with repeats. cost_usd leaves out `unpriced` pods. saves:
    (moment, row, iteration) of durable checkpoints, at the moment they were trained. expected: the model beside it.
    """

    run_id: str
    begin: float
    end: float
    stretches: tuple[Stretch, ...]
    rows: tuple[tuple[str, str], ...]
    attempts: int
    iterations: int
    trained: int
    losses: tuple[Loss, ...]
    cost_usd: float
    unpriced: int
    saves: tuple[tuple[float, str, int], ...]
    expected: Expected | None

    @property
    def wall_s(self) -> float:
        """From the begin of the run to its end, or to now."""
        return self.end - self.begin

    @cached_property
    def seconds(self) -> dict[Kind, float]:
        """Wall seconds by kind; together they are `wall_s`."""
        return {kind: math.fsum(s.seconds for s in self.stretches if s.kind is kind) for kind in Kind}

    @property
    def productive_s(self) -> float:
        """Seconds spent on iterations that are in the final state: a repeat counts, what it repeats does not."""
        return self.seconds[Kind.TRAINING] + self.seconds[Kind.REDO]

    @property
    def ettr(self) -> float | None:
        """Effective training time ratio, 0..1: productive seconds / wall seconds; None before the run has begun.

        Productive runtime over available wall-clock time, as in Kokolis et al., "Revisiting Reliability in
        Large-Scale Machine Learning Research Clusters", HPCA 2025 (arXiv:2410.21680). Waiting for a pod, every kind of
        start, saves and lost work count against it. A lower bound where `seconds[UNKNOWN]` is not zero.
        """
        return self.productive_s / self.wall_s if self.wall_s > 0 else None

    @property
    def cost_per_iteration(self) -> float | None:
        """USD for each iteration in the final state."""
        return self.cost_usd / self.iterations if self.iterations else None


def build_report(
    run_id: str,
    pods: Sequence[PodTimes],
    attempts: Sequence[AttemptTimes],
    *,
    now: float,
    started_at: float | None = None,
    ended_at: float | None = None,
    save_interval: int | Mapping[str, int] | None = None,
    save_cost_s: float | None = None,
    mtbl_s: float | None = None,
) -> Report:
    """The account of a run. started_at: of the run, where it is known better than by its first record. ended_at: of a
    run that is over; without it, a run whose last attempt was lost waits for a pod until now.

    save_interval: rollouts between saves, of all stages or by stage. save_cost_s: seconds for which a save stops the
    training; None: not known, then saves are part of the iterations. mtbl_s: for the model; default: as observed.
    """
    pods = sorted(pods, key=lambda pod: pod.rented_at)
    attempts = sorted(attempts, key=lambda a: (a.submitted_at, a.number))
    begin, end = _bounds(pods, attempts, now, started_at, ended_at)
    courses = _courses(attempts, end, save_interval, save_cost_s or 0.0)
    stretches = [*_pod_stretches(pods, attempts, end), *_waits(pods, attempts, begin, end, ended_at is None)]
    for course in courses:
        stretches += course.stretches()
    laid = lay_out(stretches, begin, end)
    by_name = {pod.name: pod for pod in pods}
    losses = tuple(loss_of(course, courses, by_name, laid) for course in courses if course.attempt.end in LOSSES)
    costs = [pod.cost(now) for pod in pods]
    return Report(
        run_id=run_id,
        begin=begin,
        end=end,
        stretches=laid,
        rows=_rows(pods, attempts, by_name),
        attempts=len(attempts),
        iterations=sum(course.kept_count for course in courses),
        trained=sum(course.count for course in courses),
        losses=losses,
        cost_usd=math.fsum(cost for cost in costs if cost is not None),
        unpriced=costs.count(None),
        saves=tuple(save for course in courses for save in course.durable_saves()),
        expected=_expected(courses, losses, end - begin, mtbl_s, save_cost_s),
    )


def _bounds(
    pods: Sequence[PodTimes],
    attempts: Sequence[AttemptTimes],
    now: float,
    started_at: float | None,
    ended_at: float | None,
) -> tuple[float, float]:
    """Begin and end of the wall clock: of the run, else of its records; what is open or waits reaches to now."""
    begins = [pod.rented_at for pod in pods] + [a.submitted_at for a in attempts]
    begin = min(begins, default=now) if started_at is None else started_at
    ends = [pod.ended_at for pod in pods] + [a.over_at for a in attempts]
    closed = [end for end in ends if end is not None]
    waits = bool(attempts) and attempts[-1].end in LOSSES
    end = now if waits or not ends or len(closed) < len(ends) else max(closed)
    return begin, max(begin, end if ended_at is None else ended_at)


def _courses(
    attempts: Sequence[AttemptTimes], end: float, save_interval: int | Mapping[str, int] | None, cost_s: float
) -> list[Course]:
    """What each attempt trained, repeated and lost, in the order of `attempts`."""
    courses: list[Course] = []
    for place, attempt in enumerate(attempts):
        before = [course for course in courses if course.attempt.stage == attempt.stage]
        later = [a for a in attempts[place + 1 :] if a.stage == attempt.stage]
        every = save_interval.get(attempt.stage) if isinstance(save_interval, Mapping) else save_interval
        seen = max((course.last for course in before if course.last is not None), default=-1)
        following = later[0].submitted_at if later else end
        until = following if attempt.over_at is None else attempt.over_at
        # A stage's first attempt has nothing to restore.
        base = -1 if attempt.base is None and not before else attempt.base
        every = every if attempt.save_interval is None else attempt.save_interval
        each_s = cost_s if attempt.save_cost_s is None else attempt.save_cost_s
        courses.append(Course(attempt, base, seen, _kept(attempt, base, later), until, every, each_s))
    for stage in {a.stage for a in attempts}:
        own = [course for course in courses if course.attempt.stage == stage]
        spans = [span for course in own if (span := course.measured()) is not None]
        for course in own:
            course.pace_s = sum(seconds for seconds, _ in spans) / sum(count for _, count in spans) if spans else None
    return courses


def _kept(attempt: AttemptTimes, base: int | None, later: Sequence[AttemptTimes]) -> int:
    """Newest iteration of this attempt's line that is in the final state, -1 for none."""
    restored = [a.base for a in later if a.base is not None]
    if restored:
        return min(restored)
    newest = attempt.last_iteration if attempt.end in ("completed", "running") else attempt.durable
    return max((n for n in (newest, base) if n is not None), default=-1)


def _pod_stretches(pods: Sequence[PodTimes], attempts: Sequence[AttemptTimes], end: float) -> list[Stretch]:
    """Boot and preflight, in the row of the first attempt on the pod, or in a row of the pod's own."""
    found = []
    for pod in pods:
        first = next((a for a in attempts if a.pod == pod.name), None)
        row = first.row if first else pod.name
        over = end if pod.ended_at is None else pod.ended_at
        used = first.submitted_at if first else None
        ready = pod.ready_at if pod.ready_at is not None else used
        if pod.running_at is None or (pod.ready_at is None and used is not None):
            # A pod that was used has booted, but when is not on record; one that was not never came to run.
            unsplit = Kind.BOOT if ready is None else Kind.UNKNOWN
            running = pod.rented_at if pod.running_at is None else pod.running_at
            found.append(Stretch(running, over if ready is None else ready, unsplit, row, POD))
        else:
            until = over if pod.ready_at is None else pod.ready_at
            found.append(Stretch(pod.running_at, until, Kind.PREFLIGHT, row, POD))
        if pod.running_at is not None:
            found.append(Stretch(pod.rented_at, pod.running_at, Kind.BOOT, row, POD))
    return found


def _waits(
    pods: Sequence[PodTimes], attempts: Sequence[AttemptTimes], begin: float, end: float, still_open: bool
) -> list[Stretch]:
    """From the moment a pod was needed until the one that was used, or is coming up, was rented."""
    by_name = {pod.name: pod for pod in pods}
    needed: float | None = begin
    found = []
    for attempt in attempts:
        pod = by_name.get(attempt.pod or "")
        if pod is not None and needed is not None:
            found.append(Stretch(needed, pod.rented_at, Kind.RENT, attempt.row, WAIT))
        needed = attempt.over_at
    wanted = still_open and (not attempts or attempts[-1].end in LOSSES)
    if wanted and needed is not None:
        coming = [pod.rented_at for pod in pods if pod.ended_at is None and pod.rented_at >= needed]
        found.append(Stretch(needed, min(coming, default=end), Kind.RENT, "", WAIT))
    return found


def _rows(
    pods: Sequence[PodTimes], attempts: Sequence[AttemptTimes], by_name: Mapping[str, PodTimes]
) -> tuple[tuple[str, str], ...]:
    """Name of each row and words beside it (host and tier), in order of time."""
    rows = [(a.submitted_at, a.row, by_name.get(a.pod or "")) for a in attempts]
    used = {a.pod for a in attempts}
    rows += [(pod.rented_at, pod.name, pod) for pod in pods if pod.name not in used]
    words = [
        (row, ", ".join(filter(None, (pod.host, pod.tier))) if pod else "")
        for _, row, pod in sorted(rows, key=lambda r: r[0])
    ]
    return tuple(words)


def _expected(
    courses: Sequence[Course], losses: Sequence[Loss], wall_s: float, mtbl_s: float | None, save_cost_s: float | None
) -> Expected | None:
    """The model for this run; None where one of its four figures is not known."""
    if mtbl_s is None and losses:
        mtbl_s = wall_s / len(losses)
    downs = [loss.down_s for loss in losses if loss.down_s is not None]
    trained = [(c.count * c.pace_s, c.count / c.every) for c in courses if c.pace_s is not None and c.every]
    saves = math.fsum(count for _, count in trained)
    if not mtbl_s or not downs or not saves or save_cost_s is None:
        return None
    interval_s, recovery_s = math.fsum(s for s, _ in trained) / saves, math.fsum(downs) / len(downs)
    if interval_s <= 0:
        return None
    return Expected(mtbl_s, interval_s, recovery_s, save_cost_s)
