"""The README.md of a pushed model: what it is and where it came from.

Our part stands between two marker comments and is written anew with every push. The rest is ours as long as nobody
changed it; from then on it stays as that person left it, front matter included.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

from plugins.checkpoints.disk import sha256_of

BEGIN = "<!-- trainstack:begin, written anew with every push: write outside of it -->"
END = "<!-- trainstack:end -->"
_BLOCK = re.compile(r"<!-- trainstack:begin\b[^>]*-->.*?<!-- trainstack:end -->", re.DOTALL)
_MARKER = re.compile(r"<!-- trainstack:(begin\b[^>]*|end )-->\n?")
_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


@dataclass(frozen=True)
class ModelCard:
    """Facts of one checkpoint. What is None is left out.

    base_model: id on the Hub of the model that training started from; a path of a machine stays out of the front
    matter. parent: URI of the checkpoint that training went on from.
    init: URI of the one whose weights the stage began with. reason: why this one is a milestone. license: an
    identifier that the Hub knows, such as apache-2.0.
    """

    run_id: str
    stage: str
    iteration: int
    attempt: int | None = None
    base_model: str | None = None
    recipe_digest: str | None = None
    git_commit: str | None = None
    image_digest: str | None = None
    data_hash: str | None = None
    parent: str | None = None
    init: str | None = None
    pod: str | None = None
    source: str | None = None
    reason: str | None = None
    license: str | None = None
    library_name: str = "transformers"
    tags: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    def facts(self) -> dict[str, str]:
        """Name and value of everything that is known, for people and for `trainstack_manifest.json`."""
        known: dict[str, object] = {
            "run": self.run_id,
            "stage": self.stage,
            "iteration": self.iteration,
            "attempt": self.attempt,
            "milestone because": self.reason,
            "base model": self.base_model,
            "recipe digest": self.recipe_digest,
            "git commit": self.git_commit,
            "image digest": self.image_digest,
            "data hash": self.data_hash,
            "parent checkpoint": self.parent,
            "weights from": self.init,
            "pod": self.pod,
            "stored as": self.source,
            **{f"metric {name}": f"{value:g}" for name, value in sorted(self.metrics.items())},
        }
        return {name: str(value) for name, value in known.items() if value is not None}


def readme(card: ModelCard, existing: str | None, untouched: str | None) -> str:
    """The text of README.md. `existing` is what is there; `untouched` the `outside` of what we wrote there last."""
    block = _block(card)
    if existing is None or outside(existing) == untouched:
        return f"---\n{_front_matter(card)}---\n\n# {card.run_id}, stage {card.stage}\n\n{block}\n"
    if _BLOCK.search(existing):
        return _BLOCK.sub(lambda _found: block, existing, count=1)
    kept = _MARKER.sub("", existing).rstrip("\n")  # half a pair of markers is worth nothing
    return f"{kept}\n\n{block}\n" if kept else f"{block}\n"


def outside(text: str) -> str:
    """SHA-256 of a README without our part: whether a person changed it."""
    return sha256_of(_BLOCK.sub("", text, count=1).encode())


def _front_matter(card: ModelCard) -> str:
    front: dict[str, object] = {}
    if card.base_model and _MODEL_ID.fullmatch(card.base_model):
        front["base_model"] = card.base_model
    if card.license:
        front["license"] = card.license
    front |= {"library_name": card.library_name, "tags": list(dict.fromkeys(["trainstack", card.stage, *card.tags]))}
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _block(card: ModelCard) -> str:
    rows = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in card.facts().items())
    return (
        f"{BEGIN}\n"
        f"Iteration {card.iteration} of stage {card.stage}, trained by trainstack. Files, sizes and hashes stand in "
        f"`trainstack_manifest.json`.\n\n| lineage | |\n|---|---|\n{rows}\n{END}"
    )


def _cell(text: str) -> str:
    """One line that can neither end its cell nor our part."""
    line = " ".join(text.split())
    return line.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")
