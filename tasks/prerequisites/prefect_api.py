"""The Prefect API that a run would report to, and how pods reach it. No server is started and no run looked at."""

import base64
import time
from collections.abc import Callable

import httpx

from blocks.recipe import Recipe
from tasks.local_servers import recorded_url, running
from tasks.prerequisites.finding import ANSWER_S, CONNECT_S, MOST_SKEW_S, Finding, clock, shown

API, WAY = "Prefect API", "way from pods to the API"
LIMITS = httpx.Timeout(ANSWER_S, connect=CONNECT_S)


def look(now: Callable[[], float] = time.time) -> list[Finding]:
    """Whether the API in use answers, takes our credentials, has our version and our time."""
    import prefect
    from prefect.settings import get_current_settings

    settings, ours = get_current_settings().api, running("prefect")
    url = settings.url or (ours.url if ours else None)
    if url is None or (ours is None and url == recorded_url("prefect")):
        return [Finding(API, True, "none configured: a local server starts when needed")]
    asked_s = now()
    try:
        health = httpx.get(f"{url.rstrip('/')}/health", timeout=LIMITS)
        answered_s = now()
        version = httpx.get(
            f"{url.rstrip('/')}/admin/version",
            headers=_authorization(settings.auth_string, settings.key),
            timeout=LIMITS,
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        remedy = "start it, or unset PREFECT_API_URL (prefect config unset PREFECT_API_URL) for a local one"
        return [_no(f"{shown(url)} does not answer ({type(error).__name__})", remedy)]
    there = clock("the Prefect API", health.headers.get("Date"), asked_s, answered_s, MOST_SKEW_S, "renting")
    return [_judged(shown(url), health, version, prefect.__version__), there]


def _authorization(auth_string: object, key: object) -> dict[str, str]:
    """The header of Prefect's own client: Basic for a server's password, Bearer for a key of Prefect Cloud."""
    if auth_string is not None:
        text = str(auth_string.get_secret_value())  # type: ignore[attr-defined]
        return {"Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}
    if key is not None:
        return {"Authorization": f"Bearer {key.get_secret_value()}"}  # type: ignore[attr-defined]
    return {}


def _judged(where: str, health: httpx.Response, version: httpx.Response, ours: str) -> Finding:
    if not health.is_success:
        return _no(f"{where} is not healthy ({health.status_code})", "look at the server's log; the URL ends in /api")
    if version.status_code in (401, 403):
        return _no(
            f"{where} refuses us ({version.status_code})", "set PREFECT_API_AUTH_STRING to the server's password"
        )
    theirs = version.text.strip().strip('"') if version.is_success else f"unknown ({version.status_code})"
    if theirs != ours:
        return _no(f"{where} has version {theirs}, this machine {ours}", "install the same Prefect on both sides")
    return Finding(API, True, f"{where}, version {theirs}", required=True)


def way(recipe: Recipe | None = None) -> list[Finding]:
    """The public URL of the recipe, asked from here, or the tunnel."""
    if recipe is None or recipe.api_url is None:
        return [Finding(WAY, True, "no public URL: a tunnel over SSH will be used", needed_for="renting")]
    url = recipe.api_url.rstrip("/")
    remedy = "correct api_url in the recipe (it ends in /api), or leave it out for a tunnel over SSH"
    try:
        status = httpx.get(f"{url}/health", timeout=LIMITS).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        words = f"{shown(url)} does not answer ({type(error).__name__})"
        return [Finding(WAY, False, words, remedy, needed_for="renting")]
    ok = 200 <= status < 300
    words = f"{shown(url)}" if ok else f"{shown(url)}/health answers {status}"
    return [Finding(WAY, ok, words, remedy, needed_for="renting")]


def _no(found: str, remedy: str) -> Finding:
    return Finding(API, False, found, remedy, required=True)
