"""`huggingface_hub` made safe for a background thread of a trainer.

Its own HTTP client waits for ever (time-out None), also where a call names no other; a Hub that accepts connections and
never answers would hang an upload until the pod ends. So every request gets limits here. They are chosen so that, with
the library's five retries (pauses of 1, 2, 4, 8 and 8 s), a Hub that is dead is given up after about a minute. A 429
that asks for a long wait ends the call as well: the library would sleep, while a newer checkpoint comes along.
"""

import functools
import logging

import httpx2
from huggingface_hub import set_client_factory
from huggingface_hub.utils import disable_progress_bars, parse_ratelimit_headers  # type: ignore[attr-defined]
from huggingface_hub.utils._http import default_client_factory

CONNECT_S = 5.0
ANSWER_S = 10.0
"""How long a small question may take; a transfer fails when nothing at all moves for this long."""
PLAN_S = 30.0
"""How long the Hub may take to say where files shall go."""
WORK_S = 120.0
"""How long the Hub may take over a commit, or over the last bytes of a file that it must put together."""
WRITE_S = 30.0
"""How long it may take no byte of what is sent."""
PATIENCE_S = 20.0
"""The longest wait that the Hub may ask for within one call."""


class AskedToWait(Exception):
    """The Hub asks to wait longer than a call should take. `wait_s`: for how many seconds."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"asked to wait {wait_s:.0f} s")
        self.wait_s = wait_s


@functools.cache
def prepare() -> None:
    """Set the limits once for this process. A client that the library has open already is closed and made anew."""
    set_client_factory(_client)
    disable_progress_bars()
    logging.getLogger("huggingface_hub._commit_api").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Everything but the reminder, at every upload, that we do without Xet."""
    return "binary IO buffer" not in str(record.msg)


def _client() -> httpx2.Client:
    client = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks.get("request", []), _limit],
        "response": [*hooks.get("response", []), _refuse_long_waits],
    }
    return client


def wait_s(headers: httpx2.Headers) -> float:
    """For how many seconds the headers of a 429 ask to wait; a minute when they say nothing."""
    if (limit := parse_ratelimit_headers(headers)) is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    after = headers.get("retry-after", "").strip()
    return float(after) if after.isdigit() else 60.0


def _refuse_long_waits(response: httpx2.Response) -> None:
    if response.status_code == 429 and (asked := wait_s(response.headers)) > PATIENCE_S:
        raise AskedToWait(asked)


def _limit(request: httpx2.Request) -> None:
    limits = {"connect": CONNECT_S, "read": _answer_s(request), "write": WRITE_S, "pool": WORK_S}
    request.extensions = {**request.extensions, "timeout": limits}


def _answer_s(request: httpx2.Request) -> float:
    path = request.url.path
    if "/preupload/" in path or path.endswith("/objects/batch"):
        return PLAN_S
    makes_something = request.method == "PUT" or "/commit/" in path or "/super-squash/" in path
    puts_parts_together = request.method == "POST" and "/api/" not in path
    return WORK_S if makes_something or puts_parts_together else ANSWER_S
