"""`trainstack import`: the older stack's launch_stack.yaml as a recipe, and for every key what became of it.

The older stack's keys are those of its three example files (relay-trainer/configs/launch_stack*.example.yaml). Nothing
of a value that may be secret is written: its name goes to the recipe's `secrets:`. What the older file does not say and
a recipe needs (which GPU, what it may cost, a store that outlives the pod) stands in the recipe as a comment, "yours".
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from blocks.recipe import RUN_ID, StageName
from plugins.errors import UserError
from plugins.rayjobs.jobs import secret_names
from tasks.import_keys import WITHOUT, Fate, Outcome

_DATA = Path(__file__).resolve().parent.parent / "deployments" / "recipes" / "data"
_COMMANDS: dict[str, StageName] = {"SLIME_SFT_CMD": "sft", "SLIME_RL_CMD": "rl"}
_MAPPINGS = ("commander", "lium", "run", "worker", "worker.env", "worker.relay_run_config")
_PATTERN = "rollout_{rollout_id:08d}.pt"
_TOKEN = re.compile(r"\b(?:hf_|ghp_|sk-|AKIA)[A-Za-z0-9_-]{12,}|://[^\s/@:]+:[^\s/@$]+@")
_ASSIGNED = re.compile(r"(?<![\w$-])([A-Za-z_]\w*)=(\"[^\"]*\"|'[^']*'|[^\s;&|\"']+)")
_WANDB_KEY = re.compile(r"(--wandb-key[= ]\s*)(\"[^\"]*\"|'[^']*'|[^\s;&|\"']+)")


@dataclass(frozen=True)
class Imported:
    """recipe: YAML text; fates: one for every key that was given, in the file's order."""

    recipe: str
    fates: tuple[Fate, ...]


def import_stack(file: Path) -> Imported:
    """Read the older stack's file. Raises UserError for one that cannot be read or has none of its keys, or for
    a token within a command."""
    try:
        raw = yaml.load(file.read_text(encoding="utf-8"), yaml.BaseLoader)  # noqa: S506 - makes texts only; `yes` is a key
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {file}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)  # the message itself quotes the file, which may hold secrets
        raise UserError(f"{file}{f':{mark.line + 1}' if mark else ''}: not valid YAML") from error
    if not isinstance(raw, dict) or not set(raw) & {"commander", "lium", "run", "worker"}:
        raise UserError(f"{file}: expected a launch_stack.yaml with commander:, lium:, run: and worker:")
    given = dict(_flat(raw))
    stack = _Stack(file, given)
    for key, value in given.items():
        stack.take(key, value)
    if all(fate.outcome == "UNKNOWN" for fate in stack.fates):
        raise UserError(
            f"{file}: has none of the older stack's keys (it has {', '.join(given) or 'only empty sections'}): is this "
            "a launch_stack.yaml?"
        )
    return Imported(stack.recipe(), tuple(stack.fates))


def _flat(raw: Mapping[Any, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in raw.items():
        key = f"{place}{name}"
        if key in _MAPPINGS and (isinstance(value, dict) or not value):
            yield from _flat(value or {}, f"{key}.")
        else:
            yield key, value


@dataclass
class _Stack:
    file: Path
    given: Mapping[str, Any]
    fates: list[Fate] = field(default_factory=list)
    pod: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    commands: dict[StageName, str] = field(default_factory=dict)

    def run(self, name: str) -> Any:
        """A value of `run`; worker.relay_run_config, where it is given, was used instead."""
        own = any(key.startswith("worker.relay_run_config.") for key in self.given)
        return self.given.get(f"{'worker.relay_run_config' if own else 'run'}.{name}")

    @property
    def mode(self) -> StageName:
        found = self.run("mode") or "sft"
        if found not in ("sft", "rl"):
            raise UserError(f"{self.file}: run.mode: {found!r}: expected sft or rl")
        return "sft" if found == "sft" else "rl"

    @property
    def run_id(self) -> str:
        typed = str(self.run("run_id") or self.file.stem)
        return typed if RUN_ID.fullmatch(typed) else (_words(typed)[:40].strip("-") or "imported")

    @property
    def repo(self) -> str | None:
        """The Hub repository that was really pushed to."""
        return str(self.run("hf_repo")) if self.run("hf_repo") and not _true(self.run("hf_dry_run"), True) else None

    def take(self, key: str, value: Any) -> None:
        """Put one key where it belongs and note what became of it."""
        name = key.removeprefix("worker.relay_run_config.")
        if key in WITHOUT:
            outcome, words = WITHOUT[key]
        elif key.startswith("worker.env."):
            outcome, words = self._environment(key, value)
        elif key.startswith("run.") or name != key:
            outcome, words = self._run(key.rpartition(".")[2])
        elif key == "lium.template_id":
            self.pod["template_id"] = str(value)
            outcome, words = "taken over", "pod.template_id; what its image must hold: docs/en/image.md"
        elif key == "lium.volume":
            self.pod["volume"] = str(value)
            outcome, words = "taken over", "pod.volume"
        elif key == "lium.ready_timeout_seconds":
            self.pod["ready_timeout_minutes"] = _minutes(key, value)
            outcome, words = "taken over", "pod.ready_timeout_minutes"
        elif key == "worker.remote_workdir":
            outcome, words = "taken over", "trainer.slime_dir, where the command starts (without /relay-trainer)"
        else:
            outcome, words = "UNKNOWN", "no key of the older stack; not copied"
        self.fates.append(Fate(key, outcome, words))

    def _run(self, name: str) -> tuple[Outcome, str]:
        if name == "run_id":
            typed, taken = str(self.run(name)), self.run_id
            said = "" if typed == taken else f" (from {typed!r}, which cannot be part of a pod's name)"
            return "taken over", f"--run-id {taken}{said}"
        if name == "mode":
            return "taken over", f"the section {self.mode}:"
        if name in ("hf_repo", "hf_dry_run"):
            if not self.run("hf_repo"):
                return "not needed", "no repository was named"
            words = f"checkpoint.store hub://{self.repo}" if self.repo else "nothing was pushed; see checkpoint: below"
            return "taken over", words
        if name == "save_rollout_trajectories":
            words = "the trainer gets RELAY_ROLLOUT_TRAJECTORY_ROOT; milestones.rollouts sends them to the Hub"
            return "replaced", words
        if name == "rollout_trajectory_pattern":
            if self.run(name) in ("", _PATTERN):
                return "not needed", "it is this one"
            self.env["RELAY_ROLLOUT_TRAJECTORY_PATTERN"] = str(self.run(name))
            return "taken over", "env.RELAY_ROLLOUT_TRAJECTORY_PATTERN"
        return "UNKNOWN", "no key of the older stack; not copied"

    def _environment(self, key: str, value: Any) -> tuple[Outcome, str]:
        name = key.removeprefix("worker.env.")
        if name in _COMMANDS:
            stage = _COMMANDS[name]
            self.commands[stage], hidden = _without_secrets(str(value).strip(), key)
            self._secret(*(hidden if stage == self.mode else ()))
            words = f"{stage}.command{'' if stage == self.mode else f', as a comment: run.mode is {self.mode}'}"
            return "taken over", words + (f"; {', '.join(hidden)} comes from secrets" if hidden else "")
        if name == "MOCK_MAX_STEPS":
            return "replaced", "by num_rollout"
        text = str(value)
        if secret_names([name]) or _TOKEN.search(text):
            self._secret(name)
            return "replaced", f"by secrets: {name}; set it where you start the run, the value was not copied"
        self.env[name] = re.sub(r"\$\{(\w+):?-\}", r"${\1}", text)  # Ray puts in ${NAME}, and nothing else
        return "taken over", f"env.{name}"

    def _secret(self, *names: str) -> None:
        self.secrets += [name for name in names if name not in self.secrets]

    def recipe(self) -> str:
        """The recipe's text."""
        return "\n".join([*self._head(), *self._pod(), *self._trainer(), *self._checkpoint(), *self._rest(), ""])

    def _head(self) -> Iterator[str]:
        yield f'# Made of {self.file.name} by `trainstack import`. Look at the lines that say "yours", then:'
        yield f"#   trainstack plan RECIPE; trainstack run RECIPE --run-id {self.run_id}"
        yield from _dumped({"name": _words(self.run_id)[:25].strip("-")})
        yield ""

    def _pod(self) -> Iterator[str]:
        yield "pod:"
        yield "  gpu: H200                      # yours: the older stack took any host"
        yield "  gpu_count: 8                   # yours: what the command's script asks for"
        yield "  ray_cpus: 12                   # GPUs + 4: slime needs them"
        yield "  # max_price_per_gpu_hour: 3.5  # yours: nothing is really rented without a ceiling"
        yield "  # budget_usd: 50               # yours: nor without a budget; it takes the place of lium.ttl"
        yield from _indented(self.pod)
        yield ""

    def _trainer(self) -> Iterator[str]:
        command = self.commands.get(self.mode)
        if command is None:
            yield "# There was no command, so the older stack's mock trainer ran; tinyslime really trains, on a CPU."
            yield from _dumped({"trainer": {"kind": "tinyslime"}})
            section: dict[str, Any] = {"data": str(_DATA / f"demo_{self.mode}.jsonl")}
            section |= {"environment": {"task": "arithmetic"}} if self.mode == "rl" else {}
            section |= {"num_rollout": _steps(self.given.get("worker.env.MOCK_MAX_STEPS")), "save_interval": 1}
            section["extra_args"] = {"rollout-batch-size": 4}
            yield from _dumped({self.mode: section})
        else:
            folder = str(self.given.get("worker.remote_workdir") or "/workspace/slime")
            folder = folder.rstrip("/").removesuffix("/relay-trainer") or "/"
            yield from _dumped({"trainer": {"kind": "command", "slime_dir": folder}})
            yield from _dumped({self.mode: {"command": command}})
        for stage, other in self.commands.items():
            if stage != self.mode:
                yield from (f"# {line}" for line in _dumped({stage: {"command": other}}))
        yield ""

    def _checkpoint(self) -> Iterator[str]:
        stores = ["volume:/mnt/relay"] if self.pod.get("volume") else []
        if self.repo:
            yield "# All checkpoints, the newest three kept. For weights that others load: milestones.push_to."
            yield from _dumped({"checkpoint": {"store": [*stores, f"hub://{self.repo}"]}})
        else:
            wished = [*stores, f"hub://{self.run('hf_repo')}" if self.run("hf_repo") else "s3://your-bucket/trainstack"]
            yield "# yours: a volume alone is not enough: it hangs on one pod at a time and cannot be read from here."
            yield f"# checkpoint: {{store: [{', '.join(wished)}]}}"
        yield ""

    def _rest(self) -> Iterator[str]:
        if self.env:
            yield from _dumped({"env": self.env})
        if self.secrets:
            yield "# Names only: set them where you start the run."
            yield from _dumped({"secrets": self.secrets})
        yield ""
        yield f"# What became of the keys of {self.file.name}:"
        yield from (f"#   {' '.join(str(fate).split())}" for fate in self.fates)


def _without_secrets(command: str, key: str) -> tuple[str, list[str]]:
    """The command with `"$NAME"` for each secret in it, and their names. Raises UserError for a token elsewhere."""
    hidden: list[str] = []

    def assigned(match: re.Match[str]) -> str:
        name, value = match[1], match[2].strip("\"'")
        if not value or value.startswith("$") or not (secret_names([name]) or _TOKEN.search(value)):
            return match[0]
        hidden.append(name)
        return f'{name}="${name}"'

    def wandb(match: re.Match[str]) -> str:
        if match[2].strip("\"'").startswith("$"):
            return match[0]
        hidden.append("WANDB_API_KEY")
        return f'{match[1]}"$WANDB_API_KEY"'

    clean = _WANDB_KEY.sub(wandb, _ASSIGNED.sub(assigned, command))
    if _TOKEN.search(clean):
        raise UserError(f"{key}: there is what looks like a token in it; write $NAME there, and NAME under worker.env")
    return clean, list(dict.fromkeys(hidden))


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as such."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _dumped(part: Mapping[str, Any]) -> list[str]:
    return yaml.dump(dict(part), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000).splitlines()


def _indented(part: Mapping[str, Any]) -> list[str]:
    return [f"  {line}" for line in _dumped(part)] if part else []


def _words(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _true(value: Any, default: bool) -> bool:
    return default if value is None else str(value).lower() == "true"


def _steps(value: Any) -> int:
    return int(value) if str(value).isdigit() and int(value) else 3


def _minutes(key: str, value: Any) -> float:
    try:
        return round(float(value) / 60, 2)
    except (TypeError, ValueError):
        raise UserError(f"{key}: expected a number of seconds") from None
