"""What this machine has for a run: every prerequisite with what was found and its remedy. Changes and rents nothing.

The checks are in `tasks/prerequisites/`. They run beside each other, each network call with a time limit of its own
and all of them with one together, and a check that fails in a way nobody thought of is a finding too.
"""

import contextvars
import importlib
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from blocks.recipe import Recipe
from tasks.prerequisites import docker_engine, hub, lium_api, machine, prefect_api, s3, ssh_key
from tasks.prerequisites.finding import Check, Finding
from tasks.redact import redactor

__all__ = ["Check", "Finding", "checks", "examine", "look_at"]

PATIENCE_S = 30.0
LIBRARIES = ("asyncssh", "boto3", "docker", "lium.sdk", "prefect.settings")
SECRETS = (
    "LIUM_API_API_KEY",
    "LIUM_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_API_KEY",
)


def examine(
    recipe: Recipe | None = None, *, now: Callable[[], float] = time.time, patience_s: float = PATIENCE_S
) -> list[Finding]:
    """Every check, in the order of a newcomer's path; with a recipe, also against what it asks for.

    now: this machine's clock, in epoch seconds. A check that takes longer than `patience_s` seconds is reported so.
    """
    for name in LIBRARIES:  # imports that meet in several threads may see each other half done
        with suppress(Exception):
            importlib.import_module(name)
    return look_at(checks(recipe, now), patience_s)


def checks(recipe: Recipe | None, now: Callable[[], float]) -> list[Check]:
    """What is looked at, in order."""
    return [
        Check("Python", "demo", machine.python),
        Check("Prefect server", "demo", machine.prefect),
        Check("torch", "demo", machine.torch),
        Check("disk", "demo", machine.disk),
        Check("local servers", "demo", machine.servers),
        Check(prefect_api.API, "demo", lambda: prefect_api.look(now)),
        Check(ssh_key.WHAT, "renting", ssh_key.look),
        Check(lium_api.KEY, "renting", lambda: lium_api.look(recipe, now)),
        Check(prefect_api.WAY, "renting", lambda: prefect_api.way(recipe)),
        Check(docker_engine.ENGINE, "images", docker_engine.engine),
        Check(docker_engine.LOGIN, "images", lambda: docker_engine.login(recipe)),
        Check(hub.TOKEN, "hub", hub.look),
        Check(s3.CREDENTIALS, "s3", lambda: s3.look(recipe)),
        Check("slime checkout", "train.py", machine.slime),
    ]


def look_at(asked: list[Check], patience_s: float = PATIENCE_S) -> list[Finding]:
    """Look at everything at once, for `patience_s` seconds at most. Findings stand in the order of the checks."""
    found: dict[int, list[Finding]] = {}
    threads = []
    for number, check in enumerate(asked):
        context = contextvars.copy_context()  # Prefect keeps its settings there
        # A daemon: one that hangs does not keep the command.
        turn = threading.Thread(target=context.run, args=(_look, number, check, found), daemon=True)
        threads.append(turn)
        turn.start()
    deadline = time.monotonic() + patience_s
    for turn in threads:
        turn.join(max(0.0, deadline - time.monotonic()))
    hide = redactor(SECRETS)
    return [
        replace(item, found=hide(item.found), remedy="" if item.ok else hide(item.remedy))
        for number, check in enumerate(asked)
        for item in found.get(number) or [_late(check, patience_s)]
    ]


def _late(check: Check, patience_s: float) -> Finding:
    words = f"no answer within {patience_s:.0f} s"
    return Finding(check.what, False, words, "look at the network, then try again", needed_for=check.needed_for)


def _look(number: int, check: Check, found: dict[int, list[Finding]]) -> None:
    try:
        found[number] = check.look()
    except Exception as error:  # a check that fails is a finding, the others go on
        words = f"the check itself failed: {type(error).__name__}: {' '.join(str(error).split())}"
        remedy = "this is a mistake in trainstack: please report it"
        found[number] = [Finding(check.what, False, words, remedy, needed_for=check.needed_for)]
