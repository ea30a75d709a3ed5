"""What a trainer died of, and which key of the recipe would mend it, from the end of its log.

The same log carries prompts, answers and what environments print, tracebacks among them. So a line counts only as one
of these, and only from its first character on: a line of an exception that ended a traceback, the driver's before its
actors'; a bare line of a native library or of Ray's daemons; the logger's last message.

What the driver raised last is its death, with what that was raised from; what it raised before was handled. Only where
this says no more than that another process died do all other lines count. Else a bare line needs the prefix that a
native library or a daemon gives it, and for a `command`, which may print what it likes, none counts. What the
RolloutManager prints, which runs the user's code and shows samples, counts only where the driver has no exception of
its own. The known causes stand in `causes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from plugins.slime.causes import CAUSES, Cause, Mend
from plugins.slime.progress import logged, undressed

TAIL_LINES = 3000
"""How much of a log's end is worth keeping for a diagnosis: every rank may print its own traceback."""
LONGEST_LINE = 4000
_MESSAGE_LINES = 12
FOLLOWS_RANK = 2
_NAMES_OF_KILLS = {137: 9, -9: 9, 139: 11, -11: 11}

_RANK = re.compile(r"\A\[rank\d+\]: ?")  # torch's excepthook, torch/distributed/distributed_c10d.py:1922
_DAEMON = re.compile(r"\A\((?:raylet|gcs_server|autoscaler|scheduler)[^()]*\) ")
_BAR = re.compile(r"\A[\w .-]{1,100}: +\d+%\|[^|\n]*\| *\d+/\d+ \[[^\[\]]*\] *")
_NATIVE = re.compile(  # the kernel; torch's C++; NCCL; signal handlers of Python and abseil
    r"\[ *\d+\.\d+\] NVRM: |\[[EFWI]\d* ?\d\d:|\[[EFWI]\d{4} |[\w.-]+:\d+:\d+ \[\d+\] |Fatal Python error: |\*\*\* SIG"
)
_LINKS = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
# Exceptions that report the death of another process.
_REPORTS = re.compile(
    r"ray\.exceptions\.|torch\.distributed\.elastic\.|torch\.multiprocessing\.spawn\.|subprocess\.CalledProcessError"
    r"|concurrent\.futures\.process\.BrokenProcessPool"
)
_HEADING = "Traceback (most recent call last):"
_FRAME = re.compile(r'\s+File "[^"]*", line \d+')
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:\([\w.]+\))?(?::.*)?")
# slime/rollout/sglang_rollout.py:418,444,593, sft_rollout.py:63: messages that show a sample
_SHOWS_SAMPLE = re.compile(
    r"First rollout sample: |Finish rollout: |eval_rollout_single_dataset example |sft_rollout::"
)
_RAYS = "pid="
"""In Ray's prefix, so that it tells an actor from the driver and its ranks."""
_USERS_CODE = "RolloutManager"
_STAGE_KEY = re.compile(r"\b(?:parallelism|engine|rollout|optimisation|model|data|extra_args)\b")
_BLANK = re.compile(r" ?\(\{which\}\)|: \{which\}| (?:of type|at|module) \{which\}")


@dataclass(frozen=True)
class Diagnosis:
    """name: stable; what: one sentence; remedy: names the recipe's key; mend: who can do something about it."""

    name: str
    what: str
    remedy: str
    mend: Mend

    def __str__(self) -> str:
        return f"{self.name}: {self.what}. What to do: {self.remedy}."


@dataclass
class _Evidence:
    """Lines that may show a cause, with where they stand. kind: exception, bare, native (bare, with the prefix of who
    says it) or logged. linked: raised from the exception before it."""

    kind: str
    speaker: str
    lines: list[str]
    around: str = ""
    linked: bool = False


@dataclass
class _Reader:
    """Takes a log apart, each speaker by itself: Ray mixes their lines."""

    found: list[_Evidence] = field(default_factory=list)
    last_logged: _Evidence | None = None
    _frames: dict[str, list[str]] = field(default_factory=dict)
    _open: dict[str, _Evidence] = field(default_factory=dict)
    _chain: dict[str, str] = field(default_factory=dict)
    _in_sample: set[str] = field(default_factory=set)
    _linked: set[str] = field(default_factory=set)

    def take(self, line: str) -> None:
        """Take the next line."""
        prefix, text = undressed(line)
        text = text[:LONGEST_LINE]
        rank, daemon = _RANK.match(text), _DAEMON.match(text)
        speaker = (prefix[0] if prefix else "") + (rank[0] if rank else "")
        text = _BAR.sub("", _DAEMON.sub("", _RANK.sub("", text)))
        words = logged(text)
        if words is not None:
            self._take_logged(speaker, words.text)
        elif speaker in self._in_sample:
            return
        elif text == _HEADING or _FRAME.match(text):
            if self._open.pop(speaker, None) and text != _HEADING:
                self._linked.add(speaker)  # Ray: the actor's frames follow its driver's exception
            self._frames.setdefault(speaker, []).append(text.strip())
        elif speaker in self._frames:
            self._take_traceback(speaker, text)
        elif text in _LINKS:
            self._linked.add(speaker)
        elif speaker in self._open and text.strip():
            if len(self._open[speaker].lines) < _MESSAGE_LINES:
                self._open[speaker].lines.append(text)
        elif text.strip():
            self._open.pop(speaker, None)
            native = daemon or _NATIVE.match(text) or prefix
            self.found.append(_Evidence("native" if native else "bare", speaker, [text], speaker))

    def _take_logged(self, speaker: str, text: str) -> None:
        self._open.pop(speaker, None)
        self._frames.pop(speaker, None)
        self._in_sample.discard(speaker)
        if _SHOWS_SAMPLE.match(text):
            self._in_sample.add(speaker)
            return
        self.last_logged = _Evidence("logged", speaker, [text], speaker)
        if text.endswith(_HEADING):  # SGLang logs a whole traceback as one message
            self._frames[speaker] = []
            self.found.append(_Evidence("bare", speaker, [text], speaker))

    def _take_traceback(self, speaker: str, text: str) -> None:
        if not text.strip() or text.startswith((" ", "\t", "|", "+")):
            return
        frames = self._frames.pop(speaker)
        if _EXCEPTION.fullmatch(text) is None:
            return
        linked = speaker in self._linked
        self._linked.discard(speaker)
        before = self._chain.get(speaker, "") if linked else ""
        around = "\n".join([speaker, before, *frames, text])[-20_000:]
        self._chain[speaker] = around
        self._open[speaker] = _Evidence("exception", speaker, [text], around, linked)
        self.found.append(self._open[speaker])

    def evidence(self, kind: str) -> list[_Evidence]:
        """All that counts, the most telling first. kind: as `diagnose` takes it."""
        death = self._death()
        rest = [one for one in self.found if _USERS_CODE not in one.speaker or (not death and one.kind == "exception")]
        others = [one for one in rest if one.kind == "exception" and _RAYS in one.speaker]
        bare = [one for one in rest if one.kind in ("bare", "native")]
        last = [self.last_logged] if self.last_logged else []
        follows = _follows(death)
        if death and kind == "command":
            others, bare, last = others if follows else [], [], []
        elif not follows:
            bare, last = [one for one in bare if one.kind == "native"], []
        return [*death, *reversed(others), *reversed(bare), *last]

    def survived(self) -> list[_Evidence]:
        """The driver's exceptions that are no part of its death."""
        death = self._death()
        return [one for one in self.found if one.kind == "exception" and _RAYS not in one.speaker and one not in death]

    def _death(self) -> list[_Evidence]:
        """What the driver raised last and what that was raised from, the last first. Where this only follows from the
        end of another process, which may write into the same log, what was raised before that too; and what other
        ranks died of, as torch marks only what nobody caught."""
        driver = [one for one in self.found if one.kind == "exception" and _RAYS not in one.speaker]
        death: list[_Evidence] = []
        for one in reversed(driver):
            if death and not death[-1].linked and not _follows(death):
                break
            death.append(one)
        ranks = [one for one in driver if one.speaker and one not in death]
        return [*death, *reversed(ranks)] if any(one.speaker for one in death) else death


def _follows(death: Sequence[_Evidence]) -> bool:
    """Whether an exception explains nothing: none there, a report only, or a cause that follows from another one."""
    known = [cause.rank for one in death for line in one.lines for cause in CAUSES if _shows(cause, one, line)]
    return min(known) >= FOLLOWS_RANK if known else all(_REPORTS.match(one.lines[0]) for one in death)


def _shows(cause: Cause, evidence: _Evidence, line: str) -> bool:
    return cause.match(line) is not None and cause.fits(evidence.around)


def _read(lines: Iterable[str]) -> _Reader:
    reader = _Reader()
    for line in lines:
        reader.take(line)
    return reader


def earlier_cause(lines: Iterable[str]) -> str | None:
    """Name and words of a known cause that the driver raised before its death, and so survived; None without one."""
    for one in reversed(_read(lines).survived()):
        if found := _first_match(CAUSES, one):
            return f"{found.name} ({one.lines[0][:200]})"
    return None


def diagnose(lines: Iterable[str], exit_code: int | None = None, kind: str = "slime") -> Diagnosis | None:
    """The known cause that a log's end shows; None when it shows none.

    lines: the end of the driver's log (TAIL_LINES are plenty), or of a worker's. exit_code: the trainer's, as Ray or a
    shell gives it. kind: `slime`, `tinyslime` or `command`; advice for a command's own flags is left to its author.
    """
    evidence = _read(lines).evidence(kind)
    for rank in range(1 + max(cause.rank for cause in CAUSES)):
        causes = [cause for cause in CAUSES if cause.rank == rank]
        for one in evidence:
            if found := _first_match(causes, one):
                return _with_advice_for(kind, found)
    return _killed(exit_code)


def _first_match(causes: Sequence[Cause], evidence: _Evidence) -> Diagnosis | None:
    for line in evidence.lines:
        for cause in causes:
            if (match := cause.match(line)) and cause.fits(evidence.around):
                which = match.groupdict().get("which")
                what = cause.what if which else _BLANK.sub("", cause.what)
                return Diagnosis(cause.name, what.format(which=(which or "").strip(" .,:")), cause.remedy, cause.mend)
    return None


def _with_advice_for(kind: str, found: Diagnosis) -> Diagnosis:
    if kind != "command" or _STAGE_KEY.search(found.remedy) is None:
        return found
    return Diagnosis(found.name, found.what, "Change your command's own settings accordingly", found.mend)


def _killed(exit_code: int | None) -> Diagnosis | None:
    """What an exit code alone says: 128 + the signal, or Python's minus the signal."""
    number = _NAMES_OF_KILLS.get(exit_code or 0)
    if number == 9:
        what = f"The trainer was killed (exit code {exit_code}) and said nothing, as the kernel does when memory is out"
        return Diagnosis("killed", what, "Rent a host with more memory: pod.min_ram_gb", "unknown")
    if number == 11:
        what = f"The trainer crashed in native code (exit code {exit_code})"
        return Diagnosis("segmentation-fault", what, "Use another pod.image; the next attempt may do", "unknown")
    return None
