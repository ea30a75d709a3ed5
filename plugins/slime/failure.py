"""What a failed trainer died of, as one line that is the same when it dies of the same again.

A stage that crashes at the same iteration for the same reason will do so on every pod, and each try costs money; one
that crashes differently was unlucky. Two attempts never print the same text: process ids, addresses, times, folders
and sizes differ. So the last exception is taken out of the log's end and everything that counts or names a place is
taken out of its message. How many equal failures are enough is the caller's matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from plugins.slime.progress import undressed

LIMIT = 300
"""Characters of a signature at most."""
LONGEST_TEXT = 2000
"""Characters of a text that are looked at: a program may print lines of any length."""

_REPEATED = re.compile(r" *\[repeated \d+x across cluster\].*$")
_EXCEPTION = re.compile(r"(?P<type>[A-Za-z_][\w.]*(?:\([\w.]+\))?)(?:: *(?P<message>.*))?")
_TRACEBACK = "Traceback (most recent call last):"
_FRAME = re.compile(r'\s+File ".*", line \d+')
# In this order: what is long and particular first, bare numbers last.
_NORMAL = [
    (re.compile(r"\b[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}\b"), "<id>"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?"), "<time>"),
    (re.compile(r"0x[0-9A-Fa-f]+"), "<address>"),
    (re.compile(r"(?<![\w+.-])(?:[\w+.-]+)?(?:/[\w+.@%{}~-]+)+/?"), "<path>"),
    (re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?\b"), "<host>"),
    (re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{8,}\b"), "<id>"),
    (re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"), "#"),
    (re.compile(r"\s+"), " "),
]


def signature(tail: Iterable[str], exit_reason: str = "") -> str:
    """One line without numbers and places, never empty: the last exception's type and first line of message.

    tail: last lines of the trainer's or driver's log, with Ray's prefixes and colours or without; the driver's own
    exception goes before those of its actors, whose order is chance. Without an exception: the exit reason and the last
    line that is not empty.
    """
    lines = [_stripped(line) for line in tail]
    found = _exceptions(lines)
    if found:
        return normalised(found.get("") or list(found.values())[-1])
    last = next((text.strip() for _, text in reversed(lines) if text.strip()), "")
    return ": ".join(filter(None, (normalised(exit_reason), normalised(last)))) or "no word"


def normalised(text: str) -> str:
    """The text on one line, at most LIMIT characters, with ids, times, addresses, paths and numbers made alike."""
    text = text[:LONGEST_TEXT]
    for pattern, alike in _NORMAL:
        text = pattern.sub(alike, text)
    return text.strip()[:LIMIT].rstrip()


def _stripped(line: str) -> tuple[str, str]:
    """Who says it ('' for the driver), and what."""
    prefix, text = undressed(line)
    text = text[:LONGEST_TEXT]
    return (prefix[0], _REPEATED.sub("", text)) if prefix else ("", text)


def _exceptions(lines: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Each speaker's last exception, the newest at the end. Lines of several are mixed, so each is read by itself.

    An exception is the first line that is not indented after a traceback's heading or frames.
    """
    found: dict[str, str] = {}
    inside: set[str] = set()
    for speaker, text in lines:
        if text == _TRACEBACK or _FRAME.match(text):
            inside.add(speaker)
        elif speaker in inside and text.strip() and not text.startswith((" ", "\t")):
            inside.discard(speaker)
            if match := _EXCEPTION.fullmatch(text):
                found.pop(speaker, None)
                found[speaker] = ": ".join(filter(None, (match["type"], (match["message"] or "").strip())))
    return found
