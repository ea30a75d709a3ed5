"""What tests and demonstrations may ask of the stand-in through its environment: slowness, faults, and a witness.

Each fault is one that slime has in earnest and in silence, so that whoever watches a trainer can be tested against it.

    TINYSLIME_STEP_DELAY_S=0.5        every rollout takes that much longer (seconds)
    TINYSLIME_LOSE_DATASET_STATE=1    the saved data cursor is not used on a resume, and nothing is said about it
    TINYSLIME_IGNORE_LOAD=1           as if --load held no tracker: start from --ref-load, keep --start-rollout-id
    TINYSLIME_SKIP_TENSOR=name        this tensor of the checkpoint is not loaded, with slime's "will skip" line
    TINYSLIME_CRASH_AT=7              an exception in rollout 7, after its data was drawn and before it is trained
    TINYSLIME_BATCH_LOG=/path.jsonl   one line for each batch that was trained: see `log_batch`
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plugins.errors import UserError
from plugins.slime.hooks import append_line
from plugins.tinyslime.sample import Sample


@dataclass(frozen=True)
class Faults:
    """The settings above as values."""

    step_delay_s: float = 0.0
    lose_dataset_state: bool = False
    ignore_load: bool = False
    skip_tensor: str | None = None
    crash_at: int | None = None
    batch_log: Path | None = None

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Faults:
        """Read them; raises UserError naming the variable whose value cannot be used."""
        log = env.get("TINYSLIME_BATCH_LOG")
        crash_at = _number(env, "TINYSLIME_CRASH_AT")
        return cls(
            step_delay_s=max(0.0, _number(env, "TINYSLIME_STEP_DELAY_S") or 0.0),
            lose_dataset_state=_switch(env, "TINYSLIME_LOSE_DATASET_STATE"),
            ignore_load=_switch(env, "TINYSLIME_IGNORE_LOAD"),
            skip_tensor=env.get("TINYSLIME_SKIP_TENSOR") or None,
            crash_at=None if crash_at is None else int(crash_at),
            batch_log=Path(log) if log else None,
        )

    def crash_if_due(self, rollout_id: int) -> None:
        """Raise what no part of the trainer expects, as a bug would."""
        if rollout_id == self.crash_at:
            raise RuntimeError(f"TINYSLIME_CRASH_AT: rollout {rollout_id} fails as asked, in process {os.getpid()}")

    def log_batch(self, rollout_id: int, drawn: Sequence[Sample]) -> None:
        """Append what one rollout was trained on, in one write.

        `{"attempt": "2" or null, "rollout": 5, "rows": [...], "groups": [...]}`: for each prompt the number of its row
        in the data file, from 0, and its number in the order drawn. What no batch skips or repeats can be told from
        the last line of each rollout. Raises UserError when the file cannot be written.
        """
        if self.batch_log is None:
            return
        record = {
            "attempt": os.environ.get("TRAINSTACK_ATTEMPT"),
            "rollout": rollout_id,
            "rows": [sample.row for sample in drawn],
            "groups": [sample.group_index for sample in drawn],
        }
        try:
            append_line(self.batch_log, json.dumps(record))
        except OSError as error:
            raise UserError(f"TINYSLIME_BATCH_LOG {self.batch_log}: cannot be written: {error.strerror}") from error


def _number(env: Mapping[str, str], name: str) -> float | None:
    text = env.get(name)
    try:
        return float(text) if text else None
    except ValueError as error:
        raise UserError(f"{name} must be a number, not {text!r}") from error


def _switch(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "") not in ("", "0")
