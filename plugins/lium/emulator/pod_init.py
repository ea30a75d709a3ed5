"""PID 1 of an emulated pod: the parent of every process in it, and the reason why none survives it.

The emulator starts this file with one end of a socket pair. It builds the pod's file tree (namespace mode), starts what
the emulator asks for, reaps every orphan, and when the other end of the socket closes (pod deleted, emulator stopped or
killed with -9) it ends everything. In plain mode, where no PID namespace does that, it is a child subreaper: daemons
that leave their session still come back to it, so "no child left" means "no process left".

Standard library only, run with `python -I -S`, and nothing is imported late: after pivot_root only what the pod
shares is visible.

    emulator ==socket==> pod_init ---fork/exec---> ssh commands, daemons, ...
    messages are JSON; a spawn carries the file descriptors: the request itself, stdin, stdout, stderr
"""

import contextlib
import ctypes
import fcntl
import json
import os
import platform
import select
import shutil
import signal
import socket
import sys
import termios
import time
from pathlib import Path
from typing import Any

MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 4096, 16384, 1 << 18, 2
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
# glibc has no pivot_root; these are the kernel's numbers (asm/unistd_64.h and asm-generic/unistd.h).
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    result = _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode() or None)
    _check(result, f"mount {source} on {target}")


def _bind(source: str, target: str) -> None:
    """Bind a directory or file with everything mounted below it, making the mount point first."""
    if os.path.isdir(source):  # noqa: PTH112 - this file stays on os calls, they run between fork and pivot_root
        Path(target).mkdir(parents=True, exist_ok=True)
    else:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).touch()
    _mount(source, target, "none", MS_BIND | MS_REC)


def build_root(root: str, private: dict[str, str], shares: list[str]) -> None:
    """Make the pod's file tree on a tmpfs at `root` and make it `/`.

    `private` maps a path in the pod to the host directory behind it; `shares` are host paths seen at the same path.
    Every other top-level directory of the host is bound as it is. Raises OSError where the kernel does not allow it.
    """
    _mount("none", "/", "none", MS_REC | MS_PRIVATE)
    _mount("pod", root, "tmpfs", 0, "mode=755")
    for entry in sorted(Path("/").iterdir()):
        name = str(entry)
        if name in private or name == "/proc":
            continue
        if entry.is_symlink():
            Path(root + name).symlink_to(entry.readlink())
        else:
            _bind(name, root + name)
    for inside, outside in sorted(private.items()):
        _bind(outside, root + inside)
    for share in sorted(shares):
        _bind(share, root + share)
    shm = root + "/dev/shm"  # noqa: S108 - the kernel's name for shared memory
    if Path(shm).is_dir():
        # A tmpfs of its own, so that shared memory of a killed pod does not stay behind.
        _mount("shm", shm, "tmpfs", 0, "mode=1777")
    Path(root + "/proc").mkdir()
    _mount("proc", root + "/proc", "proc", 0)
    old = root + "/.host"
    Path(old).mkdir()
    _check(_libc.syscall(PIVOT_ROOT[platform.machine()], root.encode(), old.encode()), "pivot_root")
    os.chdir("/")
    _check(_libc.umount2(b"/.host", MNT_DETACH), "umount of the host's root")
    Path("/.host").rmdir()


def _child(request: dict[str, Any], fds: list[int], parent_pid: int) -> None:
    """After fork: become the asked-for command, or say why not on its stderr. Never returns."""
    try:
        os.setsid()
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
        if request.get("tty"):
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() not in (parent_pid, 0):
            os._exit(1)
        for number in (signal.SIGPIPE, signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError):
            os.chdir(request["cwd"])
        os.closerange(3, 4096)
        os.execvpe(request["argv"][0], request["argv"], request["env"])  # noqa: S606
    except BaseException as error:
        os.write(2, f"{request['argv'][0]}: {error}\n".encode())
    finally:
        os._exit(127)


class Init:
    """The loop of PID 1: start, signal, reap, report, and end everything when the emulator is gone."""

    def __init__(self, control: socket.socket, *, own_pid_namespace: bool) -> None:
        self.control = control
        self.own_pid_namespace = own_pid_namespace
        self.spawned: dict[int, int] = {}  # pid -> the emulator's number for it

    def run(self) -> None:
        """Serve until the control socket closes; afterwards no process of the pod is left."""
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        control = self.control.fileno()
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # like PID 1 of a container: only its owner ends it
        self.reply({"ready": True})
        try:
            while True:
                ready, _, _ = select.select([control, wake_read], [], [])
                if wake_read in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake_read, 4096)
                    self.reap()
                if control in ready and not self.serve_one():
                    return
        finally:
            self.end_everything()

    def reply(self, message: dict[str, Any]) -> None:
        """Tell the emulator, if it still listens."""
        with contextlib.suppress(OSError):
            self.control.send(json.dumps(message).encode())

    def serve_one(self) -> bool:
        """Carry out one message; False when the emulator is gone."""
        data, fds, _, _ = socket.recv_fds(self.control, 65536, 8)
        if not data:
            return False
        message = json.loads(data)
        if message["op"] == "spawn":
            self.spawn(message["id"], fds)
        elif message["op"] == "signal":
            for pid in [pid for pid, number in self.spawned.items() if number == message["id"]]:
                with contextlib.suppress(OSError):
                    os.killpg(pid, message["signal"])
        return True

    def spawn(self, number: int, fds: list[int]) -> None:
        """Start the command that `fds[0]` describes on the other three descriptors."""
        with open(fds[0], "rb") as request_file:  # noqa: PTH123 - a file descriptor, not a path
            request_file.seek(0)
            request = json.loads(request_file.read())
        own_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            _child(request, fds[1:4], own_pid)
        for fd in fds[1:]:
            os.close(fd)
        self.spawned[pid] = number

    def reap(self) -> None:
        """Collect every dead child, and report those that the emulator asked for.

        An orphan left as a zombie would look alive to `kill -0`.
        """
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.spawned:
                self.reply({"exited": self.spawned.pop(pid), "status": status})

    def end_everything(self) -> None:
        """In a PID namespace the kernel ends all others with us; without one, kill descendants until none is left."""
        if self.own_pid_namespace:
            os._exit(0)
        while True:
            for pid in descendants(os.getpid()):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            time.sleep(0.005)


def descendants(root_pid: int) -> list[int]:
    """Pids of all living descendants of `root_pid`, from one walk over /proc."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                after_name = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(after_name[1]), []).append(int(entry))
    found, queue = [], [root_pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def main() -> None:
    """`pod_init.py <fd of the control socket>`; the first message says how the pod is built."""
    control = socket.socket(fileno=int(sys.argv[1]))
    setup = json.loads(control.recv(65536) or b"null")
    if setup is None:
        return
    namespace = setup["mode"] == "namespace"
    try:
        if namespace:
            build_root(setup["rootfs"], setup["private"], setup["shares"])
        else:
            _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")
    except (OSError, KeyError) as error:
        control.send(json.dumps({"ready": False, "error": str(error)}).encode())
        return
    Init(control, own_pid_namespace=namespace).run()
    # Only a plain pod comes here. Its TMPDIR lies outside the state folder, where nobody else would clear it away.
    shutil.rmtree(setup["scratch"], ignore_errors=True)


if __name__ == "__main__":
    main()
