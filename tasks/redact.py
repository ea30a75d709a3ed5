"""Keeps the values of secrets out of what is logged or stored."""

import os
from collections.abc import Callable, Iterable

SHORTEST = 6  # replacing shorter values would garble ordinary words


def redactor(names: Iterable[str]) -> Callable[[str], str]:
    """A function that replaces the values of these environment variables, as set now, by ***."""
    values = sorted({os.environ.get(name, "") for name in names}, key=len, reverse=True)
    secrets = [value for value in values if len(value) >= SHORTEST]

    def redact(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, "***")
        return text

    return redact
