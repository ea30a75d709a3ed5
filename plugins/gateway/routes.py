"""Every call a pod may make; what is not here is refused.

Found by recording Prefect 3.8.8's process worker, its engine and a stage. A rule writes path and body of the call that
goes upstream anew from what it understood, so that nothing it did not look at gets through.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from plugins.gateway import run_rules, worker_rules
from plugins.gateway.standing import Standing
from plugins.gateway.states import set_state
from plugins.gateway.verdict import Answer, Call, Forward, MayWrite, Refusal

ID = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
NAME = "[A-Za-z0-9_-]+"
PLAIN = re.compile(r"(?:/[A-Za-z0-9_-]+)+/?")

Rule = Callable[[Call, Standing], Awaitable[Forward | Answer]]


@dataclass(frozen=True)
class Route:
    """A call by method and path; `query` when Prefect's client sends one (it is dropped)."""

    method: str
    path: re.Pattern[str]
    rule: Rule
    query: bool = False


def table(may_write: MayWrite) -> tuple[Route, ...]:
    """All routes; `may_write` says which artifact keys a pod may write."""
    rows: tuple[tuple[str, str, Rule], ...] = (
        ("GET", "/health", worker_rules.health),
        ("GET", "/ready", worker_rules.ready),
        ("GET", "/admin/version", worker_rules.version),
        ("GET", "/admin/storage", worker_rules.no_storage),
        ("GET", "/csrf-token", worker_rules.no_csrf),
        ("GET", "/work_pools/(NAME)", worker_rules.pool),
        ("GET", "/work_pools/(NAME)/queues/(NAME)", worker_rules.own_queue),
        ("POST", "/work_pools/(NAME)/queues/filter", worker_rules.own_queues),
        ("POST", "/work_pools/(NAME)/workers/heartbeat", worker_rules.heartbeat),
        ("POST", "/work_pools/(NAME)/get_scheduled_flow_runs", worker_rules.scheduled),
        ("GET", "/work_queues/(ID)", worker_rules.queue_by_id),
        ("GET", "/deployments/(ID)", run_rules.deployment),
        ("GET", "/flows/(ID)", run_rules.flow),
        ("POST", "/flow_runs/filter", run_rules.own_runs),
        ("GET", "/flow_runs/(ID)", run_rules.run),
        ("PATCH", "/flow_runs/(ID)", run_rules.update),
        ("PATCH", "/flow_runs/(ID)/labels", run_rules.labels),
        ("POST", "/flow_runs/(ID)/set_state", set_state),
        ("POST", "/logs/?", run_rules.logs),
        ("POST", "/artifacts/?", partial(run_rules.create_artifact, may_write=may_write)),
        ("POST", "/artifacts/filter", run_rules.own_artifacts),
        ("GET", "/artifacts/(ID)", run_rules.artifact),
        ("PATCH", "/artifacts/(ID)", run_rules.update_artifact),
    )
    return tuple(
        Route(method, re.compile(path.replace("(ID)", f"({ID})").replace("(NAME)", f"({NAME})")), rule,
              query=path == "/csrf-token")
        for method, path, rule in rows
    )  # fmt: skip


def find(routes: tuple[Route, ...], method: str, path: str, *, query: bool) -> tuple[Rule, tuple[str, ...]]:
    """The rule for a call and the variable parts of its path. Raises Refusal (403)."""
    for route in routes:
        if route.method == method and (match := route.path.fullmatch(path)):
            if query and not route.query:
                raise Refusal(403, "a query is not allowed here")
            return route.rule, tuple(part.lower() if re.fullmatch(ID, part) else part for part in match.groups())
    raise Refusal(403, "not a call that a pod may make")


def plain_path(raw: bytes, prefix: str) -> str:
    """The path below the API's prefix. Raises Refusal (400) for what a proxy and a server may read differently.

    No call we allow needs an encoded character, a dot or an empty segment, so none is decoded: they are refused.
    """
    path = raw.decode("latin-1")
    if not PLAIN.fullmatch(path):
        raise Refusal(400, "a path of letters, digits, '-' and '_' only")
    if not path.startswith(prefix + "/"):
        raise Refusal(403, f"the API is under {prefix}/")
    return path[len(prefix) :]
