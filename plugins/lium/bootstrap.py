"""Start, ask and stop the pod's supervisor over SSH.

The boot document holds the pod's secrets, so it travels on standard input from here to the supervisor and touches no
argument list and no file. Where trainstack lies on the pod is found there: a plain sshd gives its sessions none of
the image's environment, but pid 1 has it.
"""

import json
import time
from typing import Any

from plugins.errors import ControlPlaneError, PodLost, UserError
from plugins.lium.tunnel import Completed, PodConnection

MISSING = 66  # the exit status for "trainstack is not on this pod"

# The image's environment counts only in a session that lacks it (TRAINSTACK_BARE_SESSION tells the supervisor to
# complete the services' environment in the same way).
_FIND_HOME = """
from_init() { { tr '\\0' '\\n' </proc/1/environ; } 2>/dev/null | sed -n "s/^$1=//p" | head -n 1; }
from_etc() { sed -n "s/^$1=//p" /etc/environment 2>/dev/null | tr -d '"' | head -n 1; }
if [ -z "${TRAINSTACK_HOME:-}" ]; then
  TRAINSTACK_HOME=$(from_init TRAINSTACK_HOME)
  [ -n "$TRAINSTACK_HOME" ] || TRAINSTACK_HOME=$(from_etc TRAINSTACK_HOME)
  [ -n "$TRAINSTACK_HOME" ] || TRAINSTACK_HOME=/opt/trainstack
  image_path=$(from_init PATH)
  [ -z "$image_path" ] || PATH=$image_path:$PATH
  TRAINSTACK_BARE_SESSION=1
  export TRAINSTACK_BARE_SESSION
fi
[ -z "${1:-}" ] || TRAINSTACK_HOME=$1
export TRAINSTACK_HOME PATH
"""

_IN_HOME = (
    _FIND_HOME
    + f"""
cd "$TRAINSTACK_HOME" 2>/dev/null && [ -f plugins/lium/supervisor.py ] || {{
  echo "there is no trainstack in $TRAINSTACK_HOME" >&2; exit {MISSING}; }}
python=$TRAINSTACK_HOME/.venv/bin/python3
[ -x "$python" ] || python=$(command -v python3) || {{ echo "there is no python3 on PATH" >&2; exit {MISSING}; }}
"""
)

_START = _IN_HOME + 'exec "$python" -m plugins.lium.supervisor\n'

_ENVIRONMENT = (
    _FIND_HOME
    + """
if [ -n "${TRAINSTACK_BARE_SESSION:-}" ]; then cat /proc/1/environ 2>/dev/null; fi
printf '\\0'
exec env -0
"""
)

# Reads supervisor.json and compares the start time, which tells the supervisor from a later process with its pid.
_STATUS = """
cd "$1" 2>/dev/null || exit 0
[ -f supervisor.json ] || exit 0
cat supervisor.json
pid=$(sed -n 's/^ *"pid": *\\([0-9]*\\),.*/\\1/p' supervisor.json | head -n 1)
printf '\\n\\0'
cat "/proc/$pid/stat" 2>/dev/null || true
"""


def start_supervisor(
    connection: PodConnection, boot: dict[str, Any], *, home: str | None = None, timeout_s: float = 60.0
) -> None:
    """Start the supervisor with this boot document (see `boot_document.py`); one that runs already stays as it is.

    home: folder of trainstack on the pod; None: where its image says.

    UserError: the pod's image has no trainstack (another pod would not have it either). PodLost: the services do not
    start. ControlPlaneError: SSH does not answer; asking again is safe.
    """
    done = connection.run(["sh", "-c", _START, "sh", home or ""], stdin=json.dumps(boot).encode(), timeout_s=timeout_s)
    said = done.stderr.decode(errors="replace").strip() or f"exit status {done.rc}"
    if done.rc == MISSING:
        raise UserError(f"pod {connection.row.name}: {said}: use an image that has it, or name its folder in pod.home")
    if done.rc != 0:
        raise PodLost(f"pod {connection.row.name} cannot run its services: {said}")


def run_module(
    connection: PodConnection, module: str, stdin: bytes, timeout_s: float, home: str | None = None
) -> Completed:
    """Run `python -m MODULE` of the pod's trainstack to its end; secrets for it travel on standard input.

    home: see `start_supervisor`.

    UserError: the pod's image has no trainstack. ControlPlaneError: SSH does not answer; it may have run.
    """
    script = f'{_IN_HOME}exec "$python" -m {module}\n'
    done = connection.run(["sh", "-c", script, "sh", home or ""], stdin=stdin, timeout_s=timeout_s)
    if done.rc == MISSING:
        said = done.stderr.decode(errors="replace").strip()
        raise UserError(f"pod {connection.row.name}: {said}: use an image that has it, or name its folder in pod.home")
    return done


def pod_env(connection: PodConnection) -> dict[str, str]:
    """Return the environment that services on the pod start from; it always has TRAINSTACK_HOME."""
    done = connection.run(["sh", "-c", _ENVIRONMENT])
    if done.rc != 0:
        raise ControlPlaneError(f"pod {connection.row.name} did not show its environment (exit status {done.rc})")
    pairs = (item.decode(errors="replace").partition("=") for item in done.stdout.split(b"\0") if item)
    return {name: value for name, separator, value in pairs if separator}


def supervisor_status(
    connection: PodConnection, state_dir: str = "~/trainstack", timeout_s: float = 60.0
) -> dict[str, Any] | None:
    """Return supervisor.json with `alive` added, or None if no supervisor was ever started on this state directory."""
    done = connection.run(f"set -- {_shell_path(state_dir)}\n{_STATUS}", timeout_s=timeout_s)
    text, _, stat = done.stdout.partition(b"\0")
    if not text.strip():
        return None
    try:
        document: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise ControlPlaneError(f"pod {connection.row.name}: supervisor.json cannot be read: {error}") from error
    fields = stat.rpartition(b")")[2].split()
    alive = len(fields) > 19 and fields[0] not in (b"Z", b"X") and int(fields[19]) == document.get("start_ticks")
    return {**document, "alive": alive}


def stop_supervisor(connection: PodConnection, timeout_s: float = 45.0, state_dir: str = "~/trainstack") -> bool:
    """Ask the supervisor to stop everything and wait for its end; True once it is gone, False if it was not there.

    It gives the stage its grace time (25 s by default), so `timeout_s` must be longer. ControlPlaneError: it still
    runs after that.
    """
    deadline = time.monotonic() + timeout_s
    status = supervisor_status(connection, state_dir)
    if status is None or not status["alive"]:
        return False
    connection.run(["kill", "-TERM", str(status["pid"])])
    while time.monotonic() < deadline:
        status = supervisor_status(connection, state_dir)
        if status is None or not status["alive"]:
            return True
        time.sleep(0.2)
    raise ControlPlaneError(f"pod {connection.row.name}: the supervisor still runs after {timeout_s:.0f} s")


def _shell_path(path: str) -> str:
    """Quote a path for the shell, with a leading `~/` meaning the pod's home."""
    home = '"$HOME"/' if path.startswith("~/") else ""
    rest = path.removeprefix("~/").replace("'", "'\\''")
    return f"{home}'{rest}'"
