"""One rollout sample, with the names that slime gives its fields (slime/utils/types.py), so that a custom generate
function written for slime runs here unchanged. Only what such functions read or set is here, and `row`, which is ours:
the number of the sample's row in the data file, from 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


@dataclass
class Sample:
    """One prompt and what became of it. `tokens` = prompt tokens + response tokens; masks and log-probs cover the
    response only.
    """

    class Status(Enum):
        """How the generation ended."""

        PENDING = "pending"
        COMPLETED = "completed"
        TRUNCATED = "truncated"
        ABORTED = "aborted"
        FAILED = "failed"

    group_index: int | None = None
    index: int | None = None
    prompt: str | list[dict[str, Any]] = ""
    tokens: list[int] = field(default_factory=list)
    response: str = ""
    response_length: int = 0
    label: Any = None
    reward: float | None = None
    loss_mask: list[int] | None = None
    rollout_log_probs: list[float] | None = None
    remove_sample: bool = False
    status: Status = Status.PENDING
    metadata: dict[str, Any] = field(default_factory=dict)
    train_metadata: dict[str, Any] | None = None
    session_id: str | None = None
    non_generation_time: float = 0.0
    weight_versions: list[str] = field(default_factory=list)
    row: int | None = None

    def append_response_tokens(
        self,
        args: Any = None,
        *,
        tokens: list[int] | None = None,
        log_probs: list[float] | None = None,
        trainable: bool = True,
        meta_info: dict[str, Any] | None = None,
        text: str | None = None,
    ) -> None:
        """Add response tokens and keep mask, log-probs and length in line (slime.md 4.1); `meta_info` sets the status.

        Trainable tokens need log-probs; others (observations) must have none and get 0.0 and mask 0.
        """
        tokens = tokens or []
        if trainable != (log_probs is not None) or len(log_probs or tokens) != len(tokens):
            raise ValueError("trainable tokens need one log-prob each, other tokens must have none")
        self.loss_mask = (self.loss_mask or []) + [int(trainable)] * len(tokens)
        self.rollout_log_probs = (self.rollout_log_probs or []) + (log_probs or [0.0] * len(tokens))
        self.tokens = self.tokens + tokens
        self.response_length += len(tokens)
        self.response += text or ""
        ends = {"length": self.Status.TRUNCATED, "abort": self.Status.ABORTED, "stop": self.Status.COMPLETED}
        self.status = ends.get((meta_info or {}).get("finish_reason", {}).get("type"), self.status)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the status as its word."""
        return self.__dict__ | {"status": self.status.value}
