"""The Lium account of a recipe: a key that the API takes, its right to rent, money, and a clock that agrees.

The right is seen by a rent with `dry_run`, which chooses and prices and rents nothing. Of the key only the place where
it was found is shown.
"""

import os
import re
import time
from collections.abc import Callable
from configparser import ConfigParser
from configparser import Error as ConfigError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blocks.recipe import PodSection, Recipe
from plugins.errors import CapacityError, TrainstackError, UserError
from plugins.lium.boundary import convert
from tasks.lium_account import REAL_URL, own_ssh_key
from tasks.prerequisites.finding import ANSWER_S, CONNECT_S, Finding, clock, shown

KEY, RIGHT, BALANCE = "Lium API key", "right to rent", "Lium balance"
CLOCK_OF = "Lium"
DASHBOARD = "the Lium dashboard"
_KEY_WORDS = re.compile(r" \(key [^)]*\)")  # the SDK's errors end with some characters of the key


@dataclass(frozen=True)
class FoundKey:
    """An API key and the place that named it."""

    value: str = field(repr=False)
    place: str


def find_key(recipe: Recipe | None) -> FoundKey | None:
    """The key that a run would use, in the order of `tasks/lium_account.py`; None when there is none.

    Raises UserError for a block that is not there and for a file that cannot be read.
    """
    if recipe and recipe.lium.credentials_block:
        from blocks.credentials import LiumCredentials
        from tasks.control_plane import known_api

        known_api()  # without an API Prefect would start a server of its own
        name = recipe.lium.credentials_block
        return FoundKey(LiumCredentials.named(name).api_key.get_secret_value(), f"block lium-credentials/{name}")
    for name in ("LIUM_API_API_KEY", "LIUM_API_KEY"):
        if value := os.environ.get(name):
            return FoundKey(value, name)
    config, file = ConfigParser(interpolation=None), Path.home() / ".lium" / "config.ini"
    try:
        config.read(file)
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({type(error).__name__})") from error
    value = config.get("api", "api_key", fallback="")
    return FoundKey(value, str(file)) if value else None


def look(recipe: Recipe | None = None, now: Callable[[], float] = time.time) -> list[Finding]:
    """Key, right, balance and clock. Without a key, or with a recipe for the emulator, nobody is asked."""
    if recipe and recipe.lium.base_url == "emulator":
        return [Finding(KEY, True, "not needed: the recipe rents from the emulator", needed_for="renting")]
    try:
        key = find_key(recipe)
    except Exception as error:  # a block of Prefect may be asked for, which raises what its client raises
        words = str(error) if isinstance(error, UserError) else f"cannot be read ({type(error).__name__})"
        return [_no(KEY, words, "put it right, or set LIUM_API_KEY"), *_not_tried("no key")]
    if key is None:
        return [_no(KEY, "none", f"`lium init`, or set LIUM_API_KEY (from {DASHBOARD})"), *_not_tried("no key")]
    url = (recipe.lium.base_url if recipe else None) or os.environ.get("LIUM_BASE_URL") or REAL_URL
    return _ask(key, url, recipe, now)


def _ask(key: FoundKey, url: str, recipe: Recipe | None, now: Callable[[], float]) -> list[Finding]:
    from lium import Lium
    from lium.sdk import Config

    lium = Lium(Config(api_key=key.value, base_url=url.rstrip("/"), ssh_key_path=_ssh_key()))
    asked_s = now()
    try:
        answer = lium._request("GET", "/users/me", retry=False, timeout=(CONNECT_S, ANSWER_S))
        account = answer.json()
    except Exception as error:  # sorted out by `_refused`
        return [_refused(error, key, url), *_not_tried("see the key")]
    answered_s = now()
    most_s = recipe.pod.preflight.max_clock_skew_s if recipe else PodSection().preflight.max_clock_skew_s
    return [
        Finding(KEY, True, f"{key.place}; accepted by {shown(url)}", needed_for="renting"),
        _right(lium, recipe),
        _balance(account, recipe),
        clock(CLOCK_OF, answer.headers.get("Date"), asked_s, answered_s, most_s, "renting"),
    ]


def _ssh_key() -> Path | None:
    try:
        return own_ssh_key()
    except UserError:
        return None


def _refused(error: Exception, key: FoundKey, url: str) -> Finding:
    from lium.sdk.exceptions import LiumAuthError

    if isinstance(error, LiumAuthError):
        remedy = f"make a new key in {DASHBOARD} and put it where the old one is ({key.place})"
        return _no(KEY, f"{key.place}; refused by {shown(url)} (401)", remedy)
    remedy = "look at the network and at LIUM_BASE_URL (it ends in /api), then try again"
    return _no(KEY, f"{key.place}; {_words(error, f'ask {shown(url)}')}", remedy)


def _right(lium: Any, recipe: Recipe | None) -> Finding:
    """A dry run of a rent. No machine that fits now is no matter of rights."""
    from lium.sdk.exceptions import LiumBudgetExceededError, LiumInsufficientBalanceError, LiumScopeError

    pod = recipe.pod if recipe else PodSection()
    if not lium.config.ssh_public_keys:
        return _no(RIGHT, "not tried: no SSH key pair", "first the SSH key pair")
    if not lium.supports("rent_by_spec"):
        return _no(RIGHT, "not tried: this API has no dry run", "rent one pod by hand: `lium up`")
    wanted = {"gpu_type": pod.gpus[0], "gpu_count": pod.gpu_count, "max_price_per_gpu_hour": pod.max_price_per_gpu_hour}
    try:
        offer = lium.rent(**wanted, name="trainstack-doctor", dry_run=True)
    except LiumScopeError as error:
        lacking = f"the right {error.scope!r}" if error.scope else "a right"
        return _no(RIGHT, f"the key lacks {lacking}", f"make a key with the right to rent in {DASHBOARD}")
    except LiumInsufficientBalanceError as error:
        asked = "more than there is" if error.required is None else f"at least {error.required:.2f} USD"
        return _no(RIGHT, f"refused for the balance: Lium asks for {asked}", f"pay in: `lium fund`, or {DASHBOARD}")
    except LiumBudgetExceededError:
        return _no(RIGHT, "refused: the key's own budget is used up", f"raise the key's budget in {DASHBOARD}")
    except Exception as error:
        if isinstance(convert(error, "dry run"), CapacityError):
            return Finding(RIGHT, True, f"yes; no {pod.gpus[0]} as wanted just now", needed_for="renting")
        return _no(RIGHT, _words(error, "dry run of a rent"), f"look at the key's rights in {DASHBOARD}")
    price = f"{pod.gpu_count}x {pod.gpus[0]} for {offer.price_per_hour:.2f} USD an hour now"
    return Finding(RIGHT, True, f"yes; {price}", needed_for="renting")


def _balance(account: Any, recipe: Recipe | None) -> Finding:
    """At least an hour at the recipe's price ceiling; without one, anything."""
    value = account.get("balance") if isinstance(account, dict) else None
    if not isinstance(value, int | float):
        return _no(BALANCE, "Lium does not say", "look at `lium balance`")
    ceiling = recipe.pod.max_price_per_gpu_hour if recipe else None
    hour = recipe.pod.gpu_count * ceiling if recipe and ceiling else 0.0
    words = f"{value:.2f} USD" + (f"; an hour at the recipe's ceiling costs {hour:.2f} USD" if hour else "")
    enough = value > 0 and value >= hour
    return Finding(BALANCE, enough, words, f"pay in: `lium fund`, or {DASHBOARD}", needed_for="renting")


def _words(error: Exception, what: str) -> str:
    ours = error if isinstance(error, TrainstackError) else convert(error, what)
    return _KEY_WORDS.sub("", str(ours))


def _no(what: str, found: str, remedy: str) -> Finding:
    return Finding(what, False, found, remedy, needed_for="renting")


def _not_tried(why: str) -> list[Finding]:
    return [_no(what, f"not tried: {why}", f"first the {KEY}") for what in (RIGHT, BALANCE)]
