"""Text that came from a pod, made fit for a person's terminal: a pod is a stranger's machine.

Control characters could retitle or repaint the terminal, and rich's markup could break a table.
"""

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """The text without control characters; line ends and tabs stay."""
    return _CONTROL.sub("", text)


def first_line(text: str, longest: int = 300) -> str:
    """The first line that says something, without control characters, cut between words at so many characters."""
    line = next((line.strip() for line in plain(text).splitlines() if line.strip()), "")
    if len(line) <= longest:
        return line
    return f"{line[: longest - 1].rpartition(' ')[0] or line[: longest - 1]}\u2026"
