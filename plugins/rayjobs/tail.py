"""Follow a growing text file line by line, as a trainer writes it."""

from pathlib import Path

READ_BYTES = 1 << 20
LONGEST_REST = 1 << 16
"""Bytes without a line end that are waited on; more are given out as a line."""
CONTINUED = "\u2026 "
"""Stands before what is no line's beginning, so that nothing in the middle of a line is taken for one."""


class LogTail:
    """Reads the complete lines that came since the last look; a file that does not exist yet has none.

    A progress bar draws itself again after `\\r` and may do so for hours before it ends the line. When that rest gets
    longer than LONGEST_REST its newest drawing is given out as a line and the ones before are passed over, as on a
    terminal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""
        self._begun = False
        self.grew = False
        """Whether the last look found anything new, a line or not."""

    @property
    def rest(self) -> str:
        """The newest drawing of a line that is not ended yet; empty when there is none."""
        drawn = self._rest.rstrip(b"\r").rsplit(b"\r", 1)[-1]
        return self._text(drawn, continued=False)

    def lines(self, *, final: bool = False) -> list[str]:
        """New lines without their ends. `final` also returns a last line that has no newline."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read() if final else file.read(READ_BYTES)
        except FileNotFoundError:
            self.grew = False
            return []
        self._offset += len(data)
        self.grew = bool(data)
        *ended, self._rest = (self._rest + data).split(b"\n")
        whole = []
        for line in ended:
            if line.strip() or not self._begun:
                whole.append(self._text(line, self._begun))
            self._begun = False
        if self._rest and (final or len(self._rest) > LONGEST_REST):
            newest = self._rest if final else self._rest.rstrip(b"\r").rsplit(b"\r", 1)[-1]
            whole.append(self._text(newest, self._begun or len(newest) < len(self._rest.rstrip(b"\r"))))
            self._rest, self._begun = b"", not final
        return whole

    @staticmethod
    def _text(line: bytes, continued: bool) -> str:
        return (CONTINUED if continued else "") + line.decode("utf-8", "replace").rstrip("\r")
