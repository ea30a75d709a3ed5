"""Notices that a trainer stands still: slime has waits that end never and say nothing (slime.md 5.1).

Placement groups that never come, engines that never get healthy, an environment that never answers, GPUs that wait for
each other: the job stays RUNNING, and the pod costs what it costs. Some of these waits even go on writing lines. So
time is counted from the last *sign of life*, which is: a line of figures, a hook line, a timer, a progress bar that
moved, an engine that generates, or a place in the code that was not heard of before. The same words again are none.

    start --first iteration--> rollout <-> train, save, eval
      |                           |
      `---- no sign for `limit` ---'--> Stall   (half of it: a warning)

Pure logic: lines, points, bars and the clock come in from outside; stopping the trainer is left to the caller.
"""

from __future__ import annotations

import re
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from plugins.slime.failure import normalised
from plugins.slime.progress import LONGEST_LINE, Point, bar, logged, undressed

Phase = Literal["start", "rollout", "train", "save", "eval"]

PACE = 10
"""A stall is so many typical iterations..."""
LEAST = 1 / 3
"""...but never less than this part of the recipe's limit, and not more than all of it."""
SILENCE = 3
"""A phase that was silent for a while and went on may be silent for so many times that."""
KNOWN_PACE = 5
"""Iterations from which on a pace is known."""
_PLACES = 2000

_TIMER = re.compile(r"Timer (?P<name>\w+) (?P<what>start|end)\b")  # slime/utils/timer.py:24,32
_GENERATES = re.compile(r"(?:Decode|Prefill) batch[.,] ")  # SGLang's scheduler
# slime's timers by the phase they belong to (backends/megatron_utils/actor.py); all others change nothing.
_PHASES: dict[str, Phase] = {
    "train": "train",
    "actor_train": "train",
    "data_preprocess": "train",
    "log_probs": "train",
    "ref_log_probs": "train",
    "update_weights": "train",
    "wake_up": "train",
    "save_model": "save",
}
_PLACEMENT = re.compile(r"Waiting for placement group of (?P<which>.{1,120}?)\.?$")
_ENGINES = re.compile(r"Ports for engine \d+: |Launch router with args: |Router launched at |server_args=")
_ABORTS = re.compile(r"Abort request for SGLang server |SGLang server \S+ still has \d+ requests after abort")
_RETRIES = re.compile(r"Error: .*, retrying\.\.\. \(attempt \d+/\d+")  # slime/utils/http_utils.py:185


@dataclass(frozen=True)
class Stall:
    """A trainer without progress. name: stable, for the failure's signature; silent_s, limit_s: seconds."""

    name: str
    phase: Phase
    silent_s: float
    limit_s: float
    what: str
    remedy: str

    @property
    def sentence(self) -> str:
        """How long, in which phase, and what it looks like."""
        silent, limit = lasting(self.silent_s), lasting(self.limit_s)
        return f"No sign of progress for {silent} in phase {self.phase} (limit {limit}): it looks as if {self.what}"


def lasting(seconds: float) -> str:
    """A time in words: in seconds when it is short, else in minutes."""
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


# name: (what it looks like, remedy)
_LOOKS = {
    "placement-group": (
        "Ray has not the GPUs or CPUs that slime wants ({which})",
        "parallelism.gpus plus parallelism.rollout_gpus may be no more than pod.gpu_count, and pod.ray_cpus has to be "
        "GPUs + 2 at least",
    ),
    "engine-start": (
        "slime waits without end for SGLang engines that do not get healthy",
        "look at the engines' lines in the trainer's log; lower engine.mem_fraction, check engine.gpus_per_engine",
    ),
    "abort-wait": (
        "the rollout is full and slime waits, without a time limit, for samples that it aborted: a generate function "
        "or an environment does not return",
        "give every call of rollout.generate or rl.environment a time limit, and have it look at the abort",
    ),
    "engine-silent": (
        "requests to the engines fail and are made again, 60 times each, before anything is said",
        "look for the engines' own error in the log; lower engine.concurrency or engine.mem_fraction",
    ),
    "rollout-wait": (
        "samples do not come back: an environment, a reward or an engine does not answer, and slime's requests have no "
        "time limit",
        "give every call of rollout.generate, rollout.reward_function or rl.environment a time limit",
    ),
    "collective-hang": (
        "ranks wait for each other, as when one of them hangs or NCCL does",
        "env.NCCL_DEBUG: INFO tells where; extra_args distributed-timeout-minutes ends such a wait by itself",
    ),
    "slow-save": (
        "a checkpoint is being written and does not get done",
        "look at the pod's disk (pod.preflight.min_disk_write_mb_s) and, with several nodes, at pod.shared_dir",
    ),
    "loading": (
        "the trainer loads, or waits for ranks that do",
        "watchdog.start_minutes, if loading and compiling take longer than that here",
    ),
    "silent": (
        "the trainer wrote nothing new",
        "watchdog.stall_minutes, if it is meant to be silent for so long",
    ),
}


class Watchdog:
    """Watches one attempt.

    stall_s: the recipe's limit, None never says Stall; start_s: the limit for what is done for the first time. kind: a
    `command` trainer may write what it likes, so that its log is alive when it grows, with line ends or without.
    """

    def __init__(
        self,
        stall_s: float | None,
        start_s: float,
        *,
        kind: str = "slime",
        steps_per_rollout: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stall_s, self._start_s = stall_s, start_s
        self._any_line, self._steps, self._clock = kind == "command", steps_per_rollout, clock
        self.phase: Phase = "start"
        self._began = self._sign_at = clock()
        self._quiet: dict[Phase, float] = {}
        self._passed: set[Phase] = set()
        self._iteration: int | None = None
        self._iteration_at = 0.0
        self._paces: deque[float] = deque(maxlen=50)
        self._places: set[str] = set()
        self._bars: dict[str, tuple[int, int]] = {}
        self._looks: str | None = None
        self._which = ""

    def hear_line(self, line: str) -> None:
        """Take a whole line of the trainer's log."""
        if self._any_line:
            if line.strip():
                self._sign()
            return
        if drawn := bar(line):
            self.see_bar(*drawn)
            return
        words = logged(line)
        text = words.text if words else undressed(line)[1].strip()
        if not text or self._stands_still(text):
            return
        if timer := _TIMER.match(text) if words else None:
            self._take_timer(timer["name"], timer["what"])
        elif words and _GENERATES.match(text):
            self._sign()
        elif self._is_new(words.file if words and words.file else "", line, text):
            if _ENGINES.match(text):
                self._looks = "engine-start"
            elif self._looks in ("placement-group", "engine-silent"):
                self._looks = None  # it went on
            self._sign()

    def hear_rest(self, rest: str) -> None:
        """Take the log's last line, not ended yet, when the log has grown: a bar redraws itself on it for hours."""
        if self._any_line:
            self._sign()
        elif drawn := bar(rest):
            self.see_bar(*drawn)

    def take(self, point: Point) -> None:
        """Take a point that `ProgressParser` gave for the first time, of the log or of the hook."""
        if point.kind == "saved":
            self._enter("rollout")
            return
        if point.kind not in ("step", "rollout", "perf", "eval"):
            self._sign()
            return
        iteration = point.number // self._steps if point.kind == "step" else point.number
        if point.kind == "step" and (self._iteration is None or iteration > self._iteration):
            now = self._clock()
            if self._iteration is not None:
                self._paces.append((now - self._iteration_at) / (iteration - self._iteration))
            self._iteration, self._iteration_at = iteration, now
        if self.phase == "start" or point.kind == "eval":
            self._enter("rollout")
        self._sign()

    def see_bar(self, name: str, done: int, total: int) -> None:
        """Take a progress bar as it stands; only one that moved is a sign."""
        if self._bars.get(name) == (done, total):
            return
        self._bars[name] = (done, total)
        if self.phase != "start":
            self._enter("eval" if name.startswith("Eval") else "train" if name.endswith(" train") else self.phase)
        self._looks = None if self._looks != "abort-wait" or done < total else self._looks
        self._sign()

    @property
    def limit_s(self) -> float | None:
        """How long it may be without a sign now; None for ever."""
        if self._stall_s is None:
            return None
        if self._any_line:  # it tells nothing, so it starts for `start_s`
            started = self._start_s - (self._sign_at - self._began)
            return max(self._stall_s, started, SILENCE * self._quiet.get(self.phase, 0.0))
        if self._starts():
            return max(self._start_s, self._stall_s)
        least = self._stall_s
        if len(self._paces) >= KNOWN_PACE and self.phase in ("rollout", "train"):
            least = min(self._stall_s, max(LEAST * self._stall_s, PACE * statistics.median(self._paces)))
        return max(least, SILENCE * self._quiet.get(self.phase, 0.0))

    @property
    def silent_s(self) -> float:
        """Seconds since the last sign of life."""
        return self._clock() - self._sign_at

    def warning(self) -> str | None:
        """A sentence for the heartbeat once half of the limit is over; the same one until there is a sign again."""
        limit = self.limit_s
        if limit is None or self.silent_s < limit / 2:
            return None
        found = self._named(self.silent_s, limit)
        return (
            f"no sign of progress for {lasting(limit / 2)} in phase {self.phase}, stopped after {lasting(limit)} "
            f"({found.name}: {found.what})"
        )

    def stall(self) -> Stall | None:
        """The stall, once the limit is over."""
        silent, limit = self.silent_s, self.limit_s
        return None if limit is None or silent < limit else self._named(silent, limit)

    def _starts(self) -> bool:
        """Whether nothing was trained yet, or it is the first phase of its kind (the first step compiles, say)."""
        return self.phase == "start" or (self.phase in ("train", "save", "eval") and self.phase not in self._passed)

    def _sign(self) -> None:
        now = self._clock()
        self._quiet[self.phase] = max(self._quiet.get(self.phase, 0.0), now - self._sign_at)
        self._sign_at = now

    def _enter(self, phase: Phase) -> None:
        if phase != self.phase:
            self._sign()
            self._passed.add(self.phase)
            self.phase, self._looks = phase, None

    def _take_timer(self, name: str, what: str) -> None:
        phase = _PHASES.get(name)
        if self.phase != "start" and phase is not None:
            outer = name in ("train", "save_model", "update_weights")
            self._enter(phase if what == "start" or not outer else "rollout")
        self._looks = None
        self._sign()

    def _stands_still(self, text: str) -> bool:
        """Whether these are the words of a known wait, which are no sign however often they come."""
        if match := _PLACEMENT.match(text):
            self._looks, self._which = "placement-group", match["which"]
        elif _ABORTS.match(text):
            self._looks = "abort-wait"
        elif _RETRIES.match(text):
            self._looks = "engine-silent"
        else:
            return False
        return True

    def _is_new(self, file: str, line: str, text: str) -> bool:
        """Whether this place in the code was not heard of before; without a place, whether the words were not."""
        found = re.search(r"\.py:\d+(?= - )", line[-LONGEST_LINE:]) if file else None
        place = f"{file}{found[0]}" if found else normalised(text[:200])[:60]
        if place in self._places or len(self._places) >= _PLACES:
            return False
        self._places.add(place)
        return True

    def _named(self, silent_s: float, limit_s: float) -> Stall:
        default = {"start": "loading", "rollout": "rollout-wait", "eval": "rollout-wait", "train": "collective-hang"}
        name = "silent" if self._any_line else self._looks or default.get(self.phase, "slow-save")
        what, remedy = _LOOKS[name]
        return Stall(f"stall-{name}", self.phase, silent_s, limit_s, what.format(which=self._which), remedy)
