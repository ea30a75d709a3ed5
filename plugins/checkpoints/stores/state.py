"""The state of one stage in an object store: pointer, claim and index in one small JSON object.

    {"format": 1, "token": 2, "change": "9f0c...",
     "checkpoints": [{"iteration": 39, "token": 2, "place": "iter_0000039.a2", "manifest": "<SHA-256>",
                      "file": "manifest.json"}, ...],
     "broken": [{"iteration": 19, "token": 1, "place": "iter_0000019.a1", "reason": "...", "at": "..."}]}

One object, because one swap then decides at once who may write and what is visible: a writer that was superseded can
never get between the two. `change` makes every text unique, so two states with the same tag are the same state, and who
lost an answer can see whether what is there now is his own.
"""

import json
import re
import secrets
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from plugins.checkpoints.manifest import refuse_newer
from plugins.errors import Fenced, TornCheckpoint

FORMAT: Final = 1
_PLACE = re.compile(r"iter_([0-9]{7,})\.a([0-9]+)(\.[0-9]+)?")
MANIFEST_FILE: Final = re.compile(r"manifest(\.[0-9a-f]{12})?\.json")


@dataclass(frozen=True)
class Place:
    """`iter_0000019.a2`: where the attempt with token 2 put iteration 19. A number after it: it had to put it again."""

    name: str
    iteration: int
    token: int

    @classmethod
    def of(cls, name: str) -> "Place | None":
        """What a folder name says; None for one that is no place."""
        match = _PLACE.fullmatch(name)
        return cls(name, int(match[1]), int(match[2])) if match else None


class Entry(BaseModel):
    """A checkpoint that is visible. `manifest` is the SHA-256 of the text of `<place>/<file>`."""

    model_config = ConfigDict(frozen=True)

    iteration: int = Field(ge=0)
    token: int = Field(ge=0)
    place: str = Field(pattern=rf"^{_PLACE.pattern}$")
    manifest: str = Field(pattern=r"^[0-9a-f]{64}$")
    file: str = Field(default="manifest.json", pattern=rf"^{MANIFEST_FILE.pattern}$")


class Broken(BaseModel):
    """A checkpoint that was set aside; its data is kept."""

    model_config = ConfigDict(frozen=True)

    iteration: int
    token: int
    place: str
    reason: str
    at: str


class State(BaseModel):
    """See the module. `checkpoints` is newest first, one an iteration."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = FORMAT
    token: int = Field(default=0, ge=0)
    change: str = ""
    checkpoints: tuple[Entry, ...] = ()
    broken: tuple[Broken, ...] = ()

    @property
    def places(self) -> set[str]:
        """Every place that must stay."""
        return {entry.place for entry in self.checkpoints} | {broken.place for broken in self.broken}

    def at(self, iteration: int) -> Entry | None:
        """The entry of an iteration."""
        return next((entry for entry in self.checkpoints if entry.iteration == iteration), None)

    def with_entry(self, entry: Entry) -> "State":
        """With this entry in the place of another one of its iteration."""
        rest = (other for other in self.checkpoints if other.iteration != entry.iteration)
        entries = sorted([entry, *rest], key=lambda one: one.iteration, reverse=True)
        return self.model_copy(update={"checkpoints": tuple(entries)})

    def without(self, entry: Entry) -> "State":
        """Without this entry."""
        return self.model_copy(update={"checkpoints": tuple(one for one in self.checkpoints if one != entry)})

    def claimed_by(self, token: int, where: str) -> "State":
        """With the claim of an attempt. Raises Fenced when a larger token is known; `where` names the stage."""
        if token < self.token:
            raise Fenced(f"{where}: attempt with token {token} was superseded by token {self.token}: it must stop")
        return self.model_copy(update={"token": token})

    def to_json(self) -> str:
        """A text that was never written before."""
        fresh = self.model_copy(update={"change": secrets.token_hex(8)})
        return json.dumps(fresh.model_dump(mode="json"), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: bytes, where: str) -> "State":
        """Read it; `where` names it in errors.

        Raises:
            TornCheckpoint: it is damaged.
            StoreError: a newer trainstack wrote it.
        """
        try:
            value = json.loads(text)
            refuse_newer(value, FORMAT, where)
            if not isinstance(value, dict) or not {"format", "token", "checkpoints"} <= set(value):
                raise ValueError("lacks what every state has")
            return cls.model_validate(value)
        except (ValidationError, ValueError, RecursionError) as error:
            raise TornCheckpoint(f"{where}: is damaged ({type(error).__name__})") from error
