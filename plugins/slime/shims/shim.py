"""The stand-ins themselves, one program under several names; the package says what they are for.

    python -I shim.py enter FOLDER COMMAND...     make the folder and become the command
    python -I shim.py run FOLDER NAME WORDS...    what FOLDER/NAME does

Standard library only and no import of ours: it runs beside whatever PYTHONPATH the command has. A value of a variable
is never printed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

HOME = Path(__file__).resolve().parents[3]
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""What Ray's job supervisor gives a driver for its workers (ray 2.60 dashboard/modules/job/job_supervisor.py:272)."""
_SERVICES = "it would end the pod's own worker, Ray and stage"
_POD = "the run gives the pod back itself"
SKIPPED = {
    "pkill": _SERVICES,
    "killall": _SERVICES,
    "skill": _SERVICES,
    "shutdown": _POD,
    "reboot": _POD,
    "poweroff": _POD,
    "halt": _POD,
}
NAMES = (*SKIPPED, "fuser", "ray")
# Options of `ray` and of `ray job submit` that take a word of their own (ray 2.60 scripts/scripts.py:195-210,
# dashboard/modules/job/cli.py:95-180).
_RAY_VALUES = {"--logging-level", "--logging-format"}
_SUBMIT_VALUES = {
    *("--address", "--job-id", "--submission-id", "--runtime-env", "--runtime-env-json", "--working-dir"),
    *("--metadata-json", "--entrypoint-num-cpus", "--entrypoint-num-gpus", "--entrypoint-memory"),
    *("--entrypoint-resources", "--entrypoint-label-selector", "--verify", "--headers", "--log-style", "--log-color"),
}
_OWN_KEYS = {"env_vars", "working_dir", "excludes", "config"}
# Never for Ray's workers: a shell's own, what tells a driver where its Ray is, and what Ray sets for each worker.
_KEPT_HERE = {
    *("_", "SHLVL", "PWD", "OLDPWD", "BASH_ENV", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", JOB_CONFIG),
    *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
}
_NAME = re.compile(r"[A-Za-z_]\w*").fullmatch  # bash exports functions under other names
_SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|KEYS?)$", re.IGNORECASE)  # as rayjobs/jobs.py


def enter(folder: Path, command: list[str]) -> NoReturn:
    """Make the stand-ins and become the command, which finds them first.

    bash looks for functions before it looks into PATH, so that a script which puts its own environment's `bin` first
    still finds them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    env = dict(os.environ)
    inner = [f". {shlex.quote(env['BASH_ENV'])}"] if env.get("BASH_ENV") else []
    for name in NAMES:
        words = shlex.join([sys.executable, "-I", str(Path(__file__).resolve()), "run", str(folder), name])
        stand_in = folder / name
        stand_in.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        stand_in.chmod(0o755)
        inner.append(f'{name}() {{ {shlex.quote(str(stand_in))} "$@"; }}')
    functions = folder / "functions.bash"
    functions.write_text("\n".join(inner) + "\n")
    env |= {"PATH": os.pathsep.join([str(folder), *_path(env, folder)]), "BASH_ENV": str(functions)}
    begin = {name: "" if _SECRET.search(name) else _digest(value) for name, value in env.items()}
    memory = {"log": _file_behind(1), "ray": env.get("RAY_ADDRESS"), "env": begin}
    (folder / "memory.json").write_text(json.dumps(memory))
    _become(command, env)


class Shim:
    """One call of a stand-in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.memory: dict[str, Any] = json.loads((folder / "memory.json").read_text())

    def run(self, name: str, words: list[str]) -> int:
        """Do what the stand-in of this name does; gives the exit status, unless it becomes another program."""
        if name == "ray":
            return self.ray(words)
        if name == "fuser" and not any(re.fullmatch(r"-[a-zA-Z]*k\w*|--kill", word) for word in words):
            self.become_real(name, words)
        self.say(f"{' '.join([name, *words])[:160]}: not run: {SKIPPED.get(name, _SERVICES)}")
        return 0

    def ray(self, words: list[str]) -> int:
        """`ray start`, `ray stop`: nothing. `ray job submit`: what it submits. Everything else: the real one."""
        rest = words[_options_end(words, _RAY_VALUES) :]
        if rest[:1] in (["start"], ["stop"]) and "--help" not in rest:
            self.say(f"ray {rest[0]}: not run: the pod's Ray runs already and belongs to the stage")
            return 0
        if rest[:2] == ["job", "submit"] and rest[2:] != ["--help"]:
            return self.submit(rest[2:])
        self.become_real("ray", words)

    def submit(self, words: list[str]) -> int:
        """Become the program that is to be submitted; Ray's workers get its variables too, as Ray would do it."""
        end = _options_end(words, _SUBMIT_VALUES)
        options, argv = _options(words[:end], _SUBMIT_VALUES), words[end:]
        if argv[:1] == ["--"]:
            argv = argv[1:]
        if not argv:
            return self.refuse("nothing stands behind its options")
        try:
            runtime = _runtime_env(options)
        except ValueError as error:
            return self.refuse(str(error))
        if foreign := sorted(runtime.keys() - _OWN_KEYS):
            return self.refuse(f"its runtime environment asks for {', '.join(foreign)}: put that into the image")
        given = {str(name): str(value) for name, value in (runtime.get("env_vars") or {}).items()}
        folder = runtime.get("working_dir")
        if folder is not None:
            if not Path(folder).expanduser().is_dir():
                return self.refuse(f"its working directory {folder} is no folder of this pod")
            os.chdir(Path(folder).expanduser())
            given.setdefault("PYTHONPATH", os.pathsep.join([str(Path.cwd()), "${PYTHONPATH}"]))
        if "--no-wait" in options:
            self.say("ray job submit --no-wait: waited for all the same: the stage ends with this command")
        env, for_workers = self.environment(given)
        shown = f"; variables for Ray's workers: {', '.join(sorted(for_workers))}" if for_workers else ""
        self.say(f"ray job submit: run within the stage's own job: {' '.join(argv[:2])}{shown}")
        if folders := _stage_folders(argv, env):
            self.say(f"{Path(argv[1]).name}: {' '.join(folders)}: what is saved elsewhere is lost with the pod")
        _become([*argv, *folders], env)

    def environment(self, given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """The driver's variables, and those of them that Ray's workers need to be told.

        given: of --runtime-env-json; they win. A worker inherits from the pod's Ray, not from the script, so what the
        script exported is told too: its own `ray start` would have passed that on.
        """
        told = self.for_workers(given)
        env = dict(os.environ)
        for name, value in given.items():
            env[name] = _expanded(told.get(name, value))
        if self.memory["ray"]:
            env["RAY_ADDRESS"] = self.memory["ray"]  # a script may have set it to the address of the jobs API
        if told and (text := env.get(JOB_CONFIG)):
            config = json.loads(text)
            runtime = config.get("runtime_env") or {}
            config["runtime_env"] = {**runtime, "env_vars": {**(runtime.get("env_vars") or {}), **told}}
            env[JOB_CONFIG] = json.dumps(config)
        return env, told

    def for_workers(self, given: Mapping[str, str]) -> dict[str, str]:
        """Variables that the pod's Ray does not have yet. Secret ones stay out: Ray shows these to whoever lists jobs.

        PYTHONPATH keeps our folder at its end, for the adapters that a command line may name.
        """
        before: dict[str, str] = self.memory["env"]
        told = {name: value for name, value in os.environ.items() if before.get(name) != _digest(value)}
        if "PATH" in told:
            told["PATH"] = os.pathsep.join(_path(told, self.folder))
        told = {name: value for name, value in {**told, **given}.items() if name not in _KEPT_HERE and _NAME(name)}
        secret = sorted(name for name in told if _SECRET.search(name))
        if new := [name for name in secret if name not in before]:
            self.say(
                f"ray job submit: {', '.join(new)}: set for the program and not for Ray's workers, whose variables "
                "Ray shows to whoever lists jobs: name it in the recipe's `secrets:`"
            )
        for name in secret:
            del told[name]
        if "PYTHONPATH" in told and str(HOME) not in told["PYTHONPATH"].split(os.pathsep):
            told["PYTHONPATH"] = os.pathsep.join([*filter(None, [told["PYTHONPATH"]]), str(HOME)])
        return told

    def refuse(self, why: str) -> int:
        """Say why a submission cannot be; Ray's client ends with this status too."""
        self.say(f"ray job submit: cannot be run here: {why}")
        return 1

    def become_real(self, name: str, words: list[str]) -> NoReturn:
        """Become the next program of this name in PATH."""
        for place in _path(os.environ, self.folder):
            if os.access(found := Path(place or ".") / name, os.X_OK):
                _become([str(found), *words], dict(os.environ))
        print(f"{name}: command not found", file=sys.stderr)
        raise SystemExit(127)

    def say(self, line: str) -> None:
        """One line into the command's log, also where the script sends the output of a word to /dev/null."""
        text = f"trainstack: {' '.join(line.split())}\n".encode()
        log = self.memory["log"]
        target = os.open(log, os.O_WRONLY | os.O_APPEND) if log and Path(log).is_file() else 2
        os.write(target, text)


def _stage_folders(argv: list[str], env: Mapping[str, str]) -> list[str]:
    """Flags behind slime's own that make it save where the stage looks, and go on from what the stage restored.

    Of a flag given twice argparse takes the second. A `--load` that is the script's `--save` is the script's way to go
    on from itself; another one names start weights and stays, unless there is a checkpoint to go on from.
    """
    save, load = env.get("TRAINSTACK_SAVE_DIR"), env.get("TRAINSTACK_LOAD_DIR")
    if not save or not any(Path(word).name in ("train.py", "train_async.py") for word in argv[:3]):
        return []
    own = _options([word for word in argv if word], {"--save", "--load", "--save-interval"})
    own_save, own_load = (own[name].rstrip("/") if name in own else None for name in ("--save", "--load"))
    more = [] if own_save == save.rstrip("/") else ["--save", save]
    if own_save is None and "--save-interval" not in own:
        more += ["--save-interval", env.get("TRAINSTACK_SAVE_INTERVAL", "20")]
    target = load or (save if own_load is not None and own_load == own_save else None)
    return more + (["--load", target] if target and own_load != target.rstrip("/") else [])


def _options_end(words: list[str], with_value: set[str]) -> int:
    """Where the options in front of a verb or a program end."""
    place = 0
    while place < len(words) and words[place].startswith("-") and words[place] != "--":
        place += 2 if words[place] in with_value else 1
    return min(place, len(words))


def _options(words: list[str], with_value: set[str]) -> dict[str, str]:
    """`--name value` and `--name=value` by name; a switch has no value."""
    found, waiting = {}, list(words)
    while waiting:
        name, joined, value = waiting.pop(0).partition("=")
        found[name] = value if joined or name not in with_value or not waiting else waiting.pop(0)
    return found


def _runtime_env(options: Mapping[str, str]) -> dict[str, Any]:
    """What the options say about the runtime environment. Raises ValueError that shows nothing of it."""
    runtime: Any = {}
    if (text := options.get("--runtime-env-json")) is not None:
        try:
            runtime = json.loads(text)
        except ValueError as error:
            raise ValueError(f"--runtime-env-json is no JSON: {error}") from None
    elif (file := options.get("--runtime-env")) is not None:
        runtime = _read(Path(file).expanduser())
    if not isinstance(runtime, dict) or not isinstance(runtime.get("env_vars") or {}, dict):
        raise ValueError("its runtime environment is no mapping with a mapping `env_vars`")
    if folder := options.get("--working-dir"):
        runtime["working_dir"] = folder
    return runtime


def _read(file: Path) -> Any:
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--runtime-env: {type(error).__name__}: {file}") from None
    try:
        import yaml  # of Ray's own needs; where it is missing the file must be JSON, which is YAML too
    except ImportError:
        load: Callable[[str], Any] = json.loads
    else:
        load = yaml.safe_load
    try:
        return load(text)
    except Exception:  # a parser's message quotes the file
        raise ValueError(f"--runtime-env: {file} cannot be read as YAML") from None


def _expanded(value: str) -> str:
    """`${NAME}` as Ray puts it in (ray 2.60 _private/utils.py:1665): what is not set is nothing."""
    return re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))


def _path(env: Mapping[str, str], folder: Path) -> list[str]:
    return [place for place in env.get("PATH", os.defpath).split(os.pathsep) if place != str(folder)]


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()[:16]


def _file_behind(descriptor: int) -> str | None:
    """Path of the file that a descriptor writes to; None for a pipe or a terminal."""
    try:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return str(Path(f"/proc/self/fd/{descriptor}").readlink()) if regular else None
    except OSError:
        return None


def _become(argv: list[str], env: Mapping[str, str]) -> NoReturn:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python has them ignored, and a program inherits that
    try:
        os.execvpe(argv[0], argv, env)  # noqa: S606 - the command is the user's own
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr)
        raise SystemExit(127 if isinstance(error, FileNotFoundError) else 126) from None


def main(argv: list[str]) -> int:
    """Dispatch; gives the exit status."""
    if argv[0] == "enter":
        enter(Path(argv[1]), argv[2:])
    return Shim(Path(argv[1])).run(argv[2], argv[3:])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
