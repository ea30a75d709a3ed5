"""Which states a pod may propose for its own flow run, and in what form.

Prefect does not fence: an old attempt may overwrite the end that the control plane has declared. So a run that has
ended takes no state from a pod any more, and nothing a pod says puts a run back on the schedule.
"""

from typing import Any

from plugins.gateway.standing import Standing
from plugins.gateway.verdict import Answer, Call, Forward, Json, Refusal, only

FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "CRASHED"})
MAY_PROPOSE = FINAL | {"PENDING", "RUNNING"}
SCHEDULING = frozenset({"scheduled", "awaitingretry", "late", "paused", "suspended", "resuming", "cancelling"})
DETAILS = ("transition_id", "untrackable_result", "traceparent", "retriable")
NAME_CHARS = 80


async def set_state(call: Call, standing: Standing) -> Forward | Answer:
    """Propose a state for a flow run of the pod."""
    run_id = call.ids[0]
    body = call.body()
    only(body, "state", "force")
    state = _state(body.get("state"), run_id)
    force = body.get("force") is True
    # Prefect forces two ends: its worker CANCELLED for a run that never started, its engine CRASHED on a signal.
    if force and state["type"] not in ("CANCELLED", "CRASHED"):
        raise Refusal(403, "a pod may not force this state")
    now = (await standing.run_now(call.pod, run_id)).get("state")
    if isinstance(now, dict) and now.get("type") in FINAL:
        return _ended(now, state)
    return Forward("POST", f"/flow_runs/{run_id}/set_state", {"state": state, "force": force})


def _state(said: object, run_id: str) -> Json:
    """The state in the form that goes upstream: no result data (a reader might unpickle it), no foreign ids."""
    if not isinstance(said, dict):
        raise Refusal(400, "there is no state")
    kind, name, message = said.get("type"), said.get("name"), said.get("message")
    if kind not in MAY_PROPOSE:
        raise Refusal(403, f"a pod may not propose {str(kind)[:40]}")
    if not isinstance(name, str | None) or not isinstance(message, str | None) or len(name or "") > NAME_CHARS:
        raise Refusal(400, "the state's name or message is not a text")
    if name is not None and name.lower().replace(" ", "") in SCHEDULING:
        raise Refusal(403, f"a pod may not propose {name}")
    details: Any = said.get("state_details") or {}
    if not isinstance(details, dict):
        raise Refusal(400, "state_details is not an object")
    if details.get("flow_run_id") not in (None, run_id):
        raise Refusal(403, "the state is of another flow run")
    kept = {key: details[key] for key in DETAILS if details.get(key) is not None}
    return {"type": kind, "name": name, "message": message, "state_details": {**kept, "flow_run_id": run_id}}


def _ended(now: Json, proposed: Json) -> Answer:
    """The same end again is an answer that was lost; any other is refused the way Prefect's client understands."""
    if now["type"] == proposed["type"] and proposed["name"] in (None, now.get("name")):
        return Answer({"state": now, "status": "ACCEPT", "details": {"type": "accept_details"}})
    reason = f"This flow run has ended ({now.get('name')}); its pod may not change that."
    details = {"type": "abort_details", "reason": reason}
    complaint = f"the flow run has ended ({now['type']}), {proposed['type']} was proposed"
    return Answer({"state": now, "status": "ABORT", "details": details}, complaint=complaint)
