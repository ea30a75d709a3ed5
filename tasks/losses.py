"""What each loss cost: the work that was lost with it, and the way back until a new iteration was trained.

From the courses of the attempts and the laid-out stretches of the whole run to one `Loss` for each attempt that did not
end well. Which attempts those are, and the run's sums, are `accounting`'s matter.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tasks.stretches import Course, Kind, Stretch

if TYPE_CHECKING:
    from tasks.accounting import PodTimes


@dataclass(frozen=True)
class Loss:
    """One attempt that did not end well, and the way back. Seconds; None where the records do not say.

    at, declared_at: last sign of life and when it was declared lost, in epoch seconds. iterations: how many the next
    restore went back; lost_s: time spent on those and on the one it interrupted. The way back, whose eight parts add
    up to recovered_s: detect (at -> declared), rent (-> rent answered), boot (-> RUNNING, also of pods that failed),
    preflight (-> checked, worker online), restore (submitted -> trainer started, Ray included), redo (repeating what
    had been trained before), first_new (trainer started -> first new iteration done, without redo), other (the rest).
    down_s: last sign of life -> training again.
    """

    row: str
    end: str
    pod: str | None
    host: str | None
    tier: str | None
    at: float | None
    declared_at: float | None
    iterations: int
    lost_s: float | None
    detect_s: float | None = None
    rent_s: float | None = None
    boot_s: float | None = None
    preflight_s: float | None = None
    restore_s: float | None = None
    redo_s: float | None = None
    first_new_s: float | None = None
    other_s: float | None = None
    recovered_s: float | None = None
    down_s: float | None = None

    @property
    def moment(self) -> float | None:
        """When it was lost, else when that was declared; None when neither is known."""
        return self.declared_at if self.at is None else self.at

    def pieces(self) -> dict[str, float | None]:
        """The parts of the way back in order, by name."""
        names = ("detect", "rent", "boot", "preflight", "restore", "redo", "first_new", "other")
        return {name.replace("_", " "): getattr(self, f"{name}_s") for name in names}


def loss_of(course: Course, courses: Sequence[Course], pods: Mapping[str, "PodTimes"], laid: Sequence[Stretch]) -> Loss:
    """What the end of this attempt cost, up to the first new iteration after it or to the next loss."""
    attempt = course.attempt
    later = [c for c in courses[courses.index(course) + 1 :] if c.attempt.stage == attempt.stage]
    at, over = attempt.died_at, attempt.over_at
    pod = pods.get(attempt.pod or "")
    progress = attempt.last_iteration if attempt.last_iteration is not None else course.base
    back_to = next((c.base for c in later if c.base is not None), course.kept)
    known = at is not None and course.told
    loss = Loss(
        row=attempt.row,
        end=attempt.end,
        pod=attempt.pod,
        host=pod.host if pod else None,
        tier=pod.tier if pod else None,
        at=at,
        declared_at=over,
        iterations=0 if progress is None else max(0, progress - back_to),
        lost_s=math.fsum(s.seconds for s in laid if s.kind is Kind.LOST and s.row == attempt.row) if known else None,
        detect_s=None if at is None or over is None else max(0.0, over - at),
    )
    return loss if not later else _with_recovery(loss, later[0], pods, laid)


def _with_recovery(loss: Loss, course: Course, pods: Mapping[str, "PodTimes"], laid: Sequence[Stretch]) -> Loss:
    """The loss with the way back that the next attempt (`course`) went."""
    attempt, pod = course.attempt, pods.get(course.attempt.pod or "")
    new_at, trainer_at, began_at = attempt.first_new_at, attempt.trainer_at, course.begins_at
    since, until = loss.moment, course.until if new_at is None else new_at
    same = pod is not None and pod.name == loss.pod

    def spent(kind: Kind, known: bool) -> float | None:
        if same or since is None or not known:
            return 0.0 if same else None
        return math.fsum(s.within(since, until) for s in laid if s.kind is kind)

    booted = pod is not None and pod.running_at is not None
    redo_s = None if new_at is None else course.redo_s
    told = None if new_at is None or trainer_at is None or redo_s is None else new_at - trainer_at - redo_s
    loss = replace(
        loss,
        rent_s=spent(Kind.RENT, pod is not None and loss.declared_at is not None),
        boot_s=spent(Kind.BOOT, booted),
        preflight_s=spent(Kind.PREFLIGHT, booted and pod is not None and pod.ready_at is not None),
        restore_s=None if trainer_at is None else max(0.0, trainer_at - attempt.submitted_at),
        redo_s=redo_s,
        first_new_s=None if told is None else max(0.0, told),
    )
    if new_at is None or loss.at is None:
        return loss
    known_s = math.fsum(seconds for seconds in loss.pieces().values() if seconds is not None)
    down_s = None if began_at is None or began_at > new_at else began_at - loss.at
    return replace(loss, recovered_s=new_at - loss.at, other_s=max(0.0, new_at - loss.at - known_s), down_s=down_s)
