"""What a check finds. Gathering and showing findings is the doctor's; the checks themselves lie beside this file."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit, urlunsplit

CONNECT_S = 5.0
ANSWER_S = 10.0
MOST_SKEW_S = 10.0


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    `required`: also the demo on this machine cannot do without it. `needed_for`: demo, renting, images, hub, s3, or
    the command that alone needs it.
    """

    what: str
    ok: bool
    found: str
    remedy: str = ""
    required: bool = False
    needed_for: str = "demo"


@dataclass(frozen=True)
class Check:
    """A look at one thing, which may fill several lines; `what` and `needed_for` name it when the look itself fails."""

    what: str
    needed_for: str
    look: Callable[[], list[Finding]]


def shown(url: str) -> str:
    """A URL without the name and password that may stand in it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def clock(whose: str, date: str | None, asked_s: float, answered_s: float, most_s: float, needed_for: str) -> Finding:
    """This machine's clock against the `Date` header of an answer, asked and answered at these epoch seconds.

    The header names whole seconds, so nothing finer than a second plus the time of the question can be told.
    """
    what = f"clock, against {whose}"
    try:
        there_s = parsedate_to_datetime(date or "").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return Finding(what, False, "the answer names no time", "compare the clock by hand", needed_for=needed_for)
    early_s, late_s = there_s - answered_s, there_s + 1 - asked_s  # the true difference lies between them
    off_s = early_s if early_s > 0 else min(late_s, 0.0)
    words = f"{abs(off_s):.0f} s {'behind' if off_s > 0 else 'ahead'}" if off_s else "the same"
    remedy = f"set the clock (timedatectl set-ntp true); {most_s:.0f} s are allowed"
    return Finding(what, abs(off_s) <= most_s, words, remedy, needed_for=needed_for)
