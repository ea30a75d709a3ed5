"""Follow a growing text file line by line, as a trainer writes it."""

from pathlib import Path

READ_BYTES = 1 << 20


class LogTail:
    """Reads the complete lines that came since the last look; a file that does not exist yet has none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def lines(self, *, final: bool = False) -> list[str]:
        """New lines without their ends. `final` also returns a last line that has no newline."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read() if final else file.read(READ_BYTES)
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        if final and self._rest:
            whole.append(self._rest)
            self._rest = b""
        return [line.decode("utf-8", "replace").rstrip("\r") for line in whole]
