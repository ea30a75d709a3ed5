"""One command or shell of an SSH client in a pod: its streams, terminal, signals and exit status.

Each comment marked *trap* is a behaviour of asyncssh or of a client that broke a real session until it was met
(reference: lium.md section 7). Who may connect is `ssh_server.py`'s.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import termios
from typing import Any

import asyncssh

from plugins.lium.emulator.pod_process import Container, Running

CHUNK_BYTES = 65536
HANGUP_WAIT_S = 0.5
CLIENT_GONE = (OSError, asyncssh.Error)


async def run(container: Container, process: asyncssh.SSHServerProcess[bytes]) -> None:
    """One exec or shell request, from start to exit status."""
    extra = {name: value for name, value in process.env.items() if name == "LANG" or name.startswith("LC_")}
    tty = process.term_type is not None
    run_in = _run_on_terminal if tty else _run_on_pipes
    try:
        status = await run_in(container, process, container.shell_argv(process.command, tty=tty), extra)
    except ConnectionError as error:
        status = signal.SIGKILL
        with contextlib.suppress(*CLIENT_GONE):
            process.stderr.write(f"{error}\n".encode())
    with contextlib.suppress(*CLIENT_GONE):
        # *Trap*: asyncssh's exit() sends no EOF; paramiko then waits for one until its own deadline.
        process.stdout.write_eof()
        if os.WIFSIGNALED(status):
            process.exit_with_signal(signal.Signals(os.WTERMSIG(status)).name.removeprefix("SIG"))
        else:
            process.exit(os.WEXITSTATUS(status))


async def _run_on_pipes(
    container: Container, process: asyncssh.SSHServerProcess[bytes], argv: list[str], extra: dict[str, str]
) -> int:
    (in_read, in_write), (out_read, out_write), (err_read, err_write) = os.pipe(), os.pipe(), os.pipe()
    try:
        run = container.spawn(argv, (in_read, out_write, err_write), extra, tty=False)
    except ConnectionError:
        for fd in (in_write, out_read, err_read):
            os.close(fd)
        raise
    finally:
        for fd in (in_read, out_write, err_write):
            os.close(fd)
    feeding = asyncio.create_task(_feed(container, process, run, in_write, None))
    # As with OpenSSH, the session lasts until the command has ended *and* nobody holds its output any more.
    await asyncio.gather(_drain(out_read, process.stdout), _drain(err_read, process.stderr))
    status = await run.done
    await _stop(feeding)
    return status


async def _run_on_terminal(
    container: Container, process: asyncssh.SSHServerProcess[bytes], argv: list[str], extra: dict[str, str]
) -> int:
    master, slave = os.openpty()
    _set_size(master, process.term_size)
    try:
        run = container.spawn(argv, (slave, slave, slave), extra | {"TERM": process.term_type or "xterm"}, tty=True)
    except ConnectionError:
        os.close(master)
        raise
    finally:
        os.close(slave)
    feeding = asyncio.create_task(_feed(container, process, run, os.dup(master), master))
    draining = asyncio.create_task(_drain(os.dup(master), process.stdout))
    gone = asyncio.create_task(process.channel.wait_closed())
    try:
        ends: set[asyncio.Future[Any]] = {run.done, gone}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not run.done.done():
            container.signal(run, signal.SIGHUP)  # the terminal is gone: what the kernel would say
        status = await run.done
        await asyncio.wait([draining], timeout=HANGUP_WAIT_S)
    finally:
        await _stop(feeding, draining, gone)
        os.close(master)
    return status


async def _feed(
    container: Container, process: asyncssh.SSHServerProcess[bytes], run: Running, fd: int, terminal: int | None
) -> None:
    """Client to command: bytes, EOF, signals, window size."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(fd, "wb", 0))
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    try:
        while True:
            try:
                data = await process.stdin.read(CHUNK_BYTES)
            except asyncssh.TerminalSizeChanged as change:
                if terminal is not None:
                    _set_size(terminal, change.term_size)
                continue
            except (asyncssh.SignalReceived, asyncssh.BreakReceived) as received:
                name = getattr(received, "signal", "INT")
                container.signal(run, signal.Signals[f"SIG{name}"])
                continue
            if not data:
                if terminal is not None:
                    writer.write(b"\x04")  # a terminal has no EOF but Ctrl-D
                return
            writer.write(data)
            await writer.drain()
    except (KeyError, OSError, asyncssh.Error):
        return
    finally:
        transport.close()


async def _drain(fd: int, to: asyncssh.SSHWriter[bytes]) -> None:
    """Command to client. *Trap*: goes on reading when the client is gone, or the command would block for ever."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=CHUNK_BYTES)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", 0))
    listening = True
    try:
        while data := await reader.read(CHUNK_BYTES):
            if listening:
                try:
                    to.write(data)
                    await to.drain()
                except CLIENT_GONE:
                    listening = False
    except OSError:
        return  # EIO: the last process on a terminal has closed it
    finally:
        transport.close()


def _set_size(terminal: int, size: tuple[int, int, int, int]) -> None:
    width, height, pixel_width, pixel_height = size
    with contextlib.suppress(OSError):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, pixel_width, pixel_height))


async def _stop(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
