"""Which Lium account a recipe rents with: the emulator on this machine, a block, or the user's own key."""

import os
import subprocess
from configparser import ConfigParser
from configparser import Error as ConfigError
from pathlib import Path
from urllib.parse import urlparse

from blocks.recipe import LiumSection, Recipe, home
from plugins.errors import UserError
from plugins.lium.client import LiumAccount, LiumSettings, guard
from tasks.local_servers import EMULATOR_KEY, ensure_emulator, running

REAL_URL = "https://lium.io/api"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
KEY_NAMES = ("id_ed25519", "id_rsa", "id_ecdsa")


def check_money(recipe: Recipe) -> None:
    """Refuse to rent with real money when key, price ceiling or budget are missing. Contacts nobody."""
    if not _local(recipe.lium):
        guard(_settings(recipe.lium), recipe.pod.max_price_per_gpu_hour, recipe.pod.budget_usd)


def open_account(recipe: Recipe) -> LiumAccount:
    """The account for a recipe; starts the emulator when it is asked for. Raises Refused before money is spent."""
    account = account_of(recipe.lium)
    guard(account.settings, recipe.pod.max_price_per_gpu_hour, recipe.pod.budget_usd)
    return account


def account_of(lium: LiumSection) -> LiumAccount:
    """The account of these settings, to look at and to give back with; renting needs `open_account`."""
    if not _local(lium):
        return LiumAccount(_settings(lium))
    url = os.environ.get("LIUM_BASE_URL") or ensure_emulator()
    return LiumAccount(LiumSettings(url, os.environ.get("LIUM_API_KEY") or EMULATOR_KEY, _own_key()))


def accounts_in_reach() -> dict[str, LiumAccount]:
    """Every account this machine can ask, by a word for it: the local emulator if it runs, the one with a key."""
    found = {}
    real = LiumSection(base_url=None, credentials_block=None)
    named = os.environ.get("LIUM_BASE_URL")
    if (local := running("emulator")) is not None and (named is None or named == local.url):
        found["emulator"] = LiumAccount(
            LiumSettings(local.url, os.environ.get("LIUM_API_KEY") or EMULATOR_KEY, _own_key())
        )
    elif _api_key(real):
        found[_base_url(real)] = LiumAccount(_settings(real))
    if "emulator" in found and named is None and _api_key(real):
        found[REAL_URL] = LiumAccount(_settings(real))
    if not found:
        raise UserError(
            "No Lium account is known here: no emulator runs, and there is neither LIUM_API_KEY nor ~/.lium/config.ini."
        )
    return found


def _settings(lium: LiumSection) -> LiumSettings:
    return LiumSettings(_base_url(lium), _api_key(lium), own_ssh_key())


def _local(lium: LiumSection) -> bool:
    """Whether the emulator is asked for. A LIUM_BASE_URL that is not loopback never overrides that wish."""
    if lium.base_url != "emulator":
        return False
    url = os.environ.get("LIUM_BASE_URL")
    if url and not is_loopback(url):
        raise UserError(
            f"The recipe says lium.base_url: emulator, but LIUM_BASE_URL is {url}. "
            "Unset it, or change the recipe to rent there."
        )
    return True


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine, where nothing costs money."""
    return urlparse(url).hostname in LOOPBACK


def _base_url(lium: LiumSection) -> str:
    return lium.base_url or os.environ.get("LIUM_BASE_URL") or REAL_URL


def _api_key(lium: LiumSection) -> str:
    if lium.credentials_block:
        from blocks.credentials import LiumCredentials

        return LiumCredentials.named(lium.credentials_block).api_key.get_secret_value()
    from_env = os.environ.get("LIUM_API_API_KEY") or os.environ.get("LIUM_API_KEY")
    if from_env:
        return from_env
    config = ConfigParser()
    try:
        config.read(Path.home() / ".lium" / "config.ini")
    except ConfigError as error:
        raise UserError(f"~/.lium/config.ini cannot be read: {error}") from error
    return config.get("api", "api_key", fallback="")


def rents_locally(recipe: Recipe) -> bool:
    """Whether the pods of a recipe are on this machine: the emulator's, or another Lium API on loopback."""
    return _local(recipe.lium) or is_loopback(_base_url(recipe.lium))


def own_ssh_key() -> Path:
    """The user's private key whose public half Lium gets. Raises UserError when there is no pair."""
    named = os.environ.get("LIUM_SSH_KEY_PATH")
    candidates = [Path(named).expanduser()] if named else [Path.home() / ".ssh" / name for name in KEY_NAMES]
    for key in candidates:
        if key.is_file() and key.with_name(key.name + ".pub").is_file():
            return key
    raise UserError(
        f"No SSH key pair found (looked for {', '.join(map(str, candidates))} with its .pub). Make one with "
        "`ssh-keygen -t ed25519`, or set LIUM_SSH_KEY_PATH."
    )


def _own_key() -> Path:
    """A key pair of trainstack's own for emulated pods, so that a laptop needs none."""
    key = home() / "ssh" / "id_ed25519"
    if not key.with_name("id_ed25519.pub").is_file():
        import asyncssh

        key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        pair = asyncssh.generate_private_key("ssh-ed25519", comment="trainstack-emulator")
        pair.write_private_key(str(key))
        key.chmod(0o600)
        pair.write_public_key(str(key) + ".pub")
    return key


def git_commit(folder: Path) -> str:
    """Commit of the code in use, 'unknown' outside a checkout."""
    done = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
