"""The wire between gateway and server, which a test can cut."""

import socket
import threading
from contextlib import suppress


class Cable:
    """Carries TCP connections to a port on loopback until it is cut."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._ends: set[socket.socket] = set()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._serve()

    def cut(self) -> None:
        """Drop what is open; refuse what is new."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(5)
        for end in tuple(self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self._serve()

    def _serve(self) -> None:
        self._thread = threading.Thread(target=self._accept, args=(self._listening,), daemon=True)
        self._thread.start()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                here, _ = listening.accept()
                there = socket.create_connection(("127.0.0.1", self._to_port), timeout=5)
                there.settimeout(None)
                self._ends |= {here, there}
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
