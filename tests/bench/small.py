"""What our care costs in small things: sealing, restoring and reading a log, beside the plain way of each."""

import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from plugins.checkpoints.restore import restore
from plugins.checkpoints.seal import seal
from plugins.checkpoints.stores.folder import FolderStore
from plugins.slime.layout import iteration_dir, write_tracker
from plugins.slime.progress import ProgressParser

MIB = 1 << 20
ROUNDS = 5
Timed = Callable[[], None]


def paired(ours: Timed, plain: Timed, rounds: int = ROUNDS) -> tuple[float, float]:
    """Medians in seconds of both, run in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for work, kept in zip((ours, plain), times, strict=True):
            since = time.perf_counter()
            work()
            kept.append(time.perf_counter() - since)
    return statistics.median(times[0]), statistics.median(times[1])


def checkpoint(folder: Path, size_bytes: int) -> None:
    """A plain checkpoint of two files."""
    place = iteration_dir(folder, 1)
    place.mkdir(parents=True)
    for name in ("a.bin", "b.bin"):
        (place / name).write_bytes(b"\x5a" * (size_bytes // 2))
    write_tracker(folder, 1)


def seal_and_put(root: Path) -> tuple[str, str, float, float]:
    save = root / "save"
    checkpoint(save, 128 * MIB)
    count = iter(range(10_000))

    def ours() -> None:
        store = FolderStore(root / f"store-{next(count)}")
        manifest = seal(save, 1, run_id="bench", stage="sft", attempt=1, token=1, kind="plain")
        store.put(manifest, save)

    return (
        "seal + put, 128 MiB",
        "copy, fsync, compare sha256",
        *paired(ours, lambda: _copy(save, root / f"copy-{next(count)}")),
    )


def get_back(root: Path) -> tuple[str, str, float, float]:
    save, store, count = root / "save", FolderStore(root / "store"), iter(range(10_000))
    checkpoint(save, 128 * MIB)
    store.put(seal(save, 1, run_id="bench", stage="sft", attempt=1, token=1, kind="plain"), save)

    def ours() -> None:
        assert restore(store, "bench", "sft", root / f"back-{next(count)}") is not None

    return (
        "restore with every byte verified, 128 MiB",
        "copy, fsync, compare sha256",
        *paired(ours, lambda: _copy(save, root / f"c-{next(count)}")),
    )


def parse_log(root: Path) -> tuple[str, str, float, float]:
    head = "[2026-11-23 03:00:00] model.py:918 - step {}: "
    line = head + "{{'train/loss': 1.25, 'train/grad_norm': 0.5, 'train/step': {}}}\n"
    log = root / "trainer.log"
    log.write_text("".join(line.format(n, n) if n % 10 == 0 else "some words of the trainer\n" for n in range(50_000)))

    def ours() -> None:
        parser = ProgressParser()
        assert sum(parser.feed(text) is not None for text in log.read_text().splitlines()) == 5_000

    return ("parse 50,000 log lines", "read them", *paired(ours, lambda: _read(log)))


def _copy(source: Path, target: Path) -> None:
    """What a careful shell script would do: copy, flush to disk, compare checksums, one file after the other."""

    def careful(a: str, b: str) -> str:
        shutil.copyfile(a, b)
        with Path(b).open("rb+") as file:
            os.fsync(file.fileno())
        assert _digest(Path(a)) == _digest(Path(b))
        return b

    shutil.copytree(source, target, copy_function=careful)


def _digest(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _read(log: Path) -> None:
    assert len(log.read_text().splitlines()) == 50_000


def main() -> None:
    """Measure and print the table."""
    table = Table("ours", "baseline", "ours s", "baseline s", "ratio", title="bench: medians, side by side")
    for part in (seal_and_put, get_back, parse_log):
        with tempfile.TemporaryDirectory() as folder:
            name, plain, ours_s, plain_s = part(Path(folder))
        table.add_row(name, plain, f"{ours_s:.3f}", f"{plain_s:.3f}", f"{ours_s / plain_s:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
