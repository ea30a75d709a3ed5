"""What goes over the wire between a trainer and an environment: requests, answers, and the checks made on them.

    POST /v1/session/start  {task: {prompt, label, metadata}}  -> {session_id, observation, done, reward, info}
    POST /v1/session/step   {session_id, action}               -> {observation, done, reward, info}
    POST /v1/session/close  {session_id}                       -> {ok}
    GET  /health                                               -> {status}

Optional in start and step: `request_id` (the same id again is the same transition and gets the same answer; a server
that keeps this promise repeats the id in its answer) and `deadline_s` (the caller waits no longer than this). A list
of chat messages travels as `task.messages`, with `task.prompt` its plain text. Errors are HTTP statuses with
{"detail": message}.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plugins.errors import EnvError

START, STEP, CLOSE, HEALTH = "/v1/session/start", "/v1/session/step", "/v1/session/close", "/health"
Json = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """What a session is about. `label` may be None: then the task makes its own problem from the prompt."""

    prompt: str
    label: Any = None
    metadata: Json = field(default_factory=dict)
    messages: tuple[Json, ...] = ()

    @classmethod
    def of(cls, prompt: str | list[Json], label: Any, metadata: Json) -> "Problem":
        """From a sample's prompt, which is text or a list of messages with `role` and `content`."""
        if isinstance(prompt, str):
            return cls(prompt, label, metadata)
        text = "\n".join(f"{message.get('role', 'user')}: {message.get('content', '')}" for message in prompt)
        return cls(text, label, metadata, tuple(prompt))

    @classmethod
    def from_json(cls, body: Json) -> "Problem":
        """The `task` of a start request; raises EnvError naming the field that is wrong."""
        task = _get(body, "task", dict, {})
        return cls(
            prompt=_get(task, "prompt", str, ""),
            label=task.get("label"),
            metadata=_get(task, "metadata", dict, {}),
            messages=tuple(_get(task, "messages", list, [])),
        )

    def to_json(self) -> Json:
        """The `task` of a start request."""
        task = {"prompt": self.prompt, "label": self.label, "metadata": self.metadata}
        return task | ({"messages": list(self.messages)} if self.messages else {})


@dataclass(frozen=True)
class Turn:
    """What the environment says after a start or a step. `reward` is the reward so far; None means not judged yet."""

    observation: str = ""
    done: bool = False
    reward: float | None = None
    info: Json = field(default_factory=dict)

    @classmethod
    def from_json(cls, body: Json) -> "Turn":
        """An answer to start or step; raises EnvError naming the field that is wrong."""
        return cls(
            observation=_get(body, "observation", str, ""),
            done=_get(body, "done", bool, False),
            reward=_number(body, "reward"),
            info=_get(body, "info", dict, {}),
        )

    def to_json(self) -> Json:
        """The answer's fields, all present."""
        return {"observation": self.observation, "done": self.done, "reward": self.reward, "info": self.info}


@dataclass(frozen=True)
class Ask:
    """The options of a start or step request: idempotence key and how long the caller waits (seconds)."""

    request_id: str | None = None
    deadline_s: float | None = None

    @classmethod
    def from_json(cls, body: Json) -> "Ask":
        """Raises EnvError for an empty or over-long id and a deadline that is not a positive number."""
        request_id = _get(body, "request_id", str, "") or None
        if request_id is not None and len(request_id) > 200:
            raise EnvError("'request_id' is longer than 200 characters")
        deadline_s = _number(body, "deadline_s")
        if deadline_s is not None and deadline_s <= 0:
            raise EnvError(f"'deadline_s' must be more than 0, not {deadline_s}")
        return cls(request_id, deadline_s)

    def to_json(self) -> Json:
        """The fields that are set."""
        fields = {"request_id": self.request_id, "deadline_s": self.deadline_s}
        return {key: value for key, value in fields.items() if value is not None}


def text_field(body: Json, key: str) -> str:
    """A field that must be there and be text; raises EnvError."""
    if key not in body or not isinstance(body[key], str):
        raise EnvError(f"'{key}' must be text, found {type(body[key]).__name__ if key in body else 'nothing'}")
    return str(body[key])


def plain(value: Any) -> Any:
    """For json.dumps(default=...): numbers and arrays of numpy, as parquet rows bring them, become plain ones."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def _get(body: Json, key: str, kind: type, default: Any) -> Any:
    """A field that may be missing or null; anything else must be of `kind`."""
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise EnvError(f"'{key}' must be of type {kind.__name__}, found {type(value).__name__}")
    return value


def _number(body: Json, key: str) -> float | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise EnvError(f"'{key}' must be a finite number, found {value!r}")
    return float(value)
