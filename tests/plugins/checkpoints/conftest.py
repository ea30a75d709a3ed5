"""Small checkpoints in slime's layout, made without torch, and the means to change and compare them."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from plugins.checkpoints.manifest import Manifest
from plugins.checkpoints.seal import seal
from plugins.slime import layout

RUN, STAGE = "run-1", "sft"


def torch_like(content: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), content * 20)  # no time of day in it
    return buffer.getvalue()


class Trainer:
    """Writes what slime writes, in slime's order; the content depends on iteration and seed."""

    def __init__(self, save_dir: Path) -> None:
        self.save_dir = save_dir

    def files(self, iteration: int, seed: str = "", export: bool = False) -> list[tuple[Path, bytes]]:
        text = f"{iteration} {seed} "
        folder = layout.iteration_dir(self.save_dir, iteration)
        shards = {f"__0_{number}.distcp": (text * 40 * (number + 1)).encode() for number in range(2)}
        storage = {
            name: SimpleNamespace(relative_path=name, offset=0, length=len(content)) for name, content in shards.items()
        }
        written = [
            (folder / "common.pt", torch_like(text)),
            *((folder / name, content) for name, content in shards.items()),
            (folder / ".metadata", pickle.dumps(SimpleNamespace(storage_data=storage))),
            (folder / "metadata.json", b'{"sharded_backend": "torch_dist"}'),
            (self.save_dir / layout.TRACKER, str(iteration).encode()),
        ]
        if export:
            hf = layout.export_dir(self.save_dir, iteration)
            header = json.dumps({"w": {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]}}).encode()
            weights = len(header).to_bytes(8, "little") + header + text.encode().ljust(64, b".")[:64]
            written += [(hf / "config.json", b'{"model_type": "llama"}'), (hf / "model.safetensors", weights)]
        return [*written, (layout.dataset_state_file(self.save_dir, iteration), torch_like(text))]

    def save(self, iteration: int, seed: str = "", export: bool = False, upto: int | None = None) -> None:
        """Save an iteration; `upto` stops after so many files, as a trainer that is killed does."""
        for path, content in self.files(iteration, seed, export)[:upto]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def sealed(
        self, iteration: int, seed: str = "", export: bool = False, attempt: int = 1, mark: str = ""
    ) -> Manifest:
        self.save(iteration, seed, export)
        who = {"run_id": RUN, "stage": STAGE, "attempt": attempt, "token": attempt}
        return seal(self.save_dir, iteration, **who, export=export, lineage={"mark": mark})


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(tmp_path / "save")


@pytest.fixture
def second(tmp_path: Path) -> Trainer:
    """Another trainer on another pod."""
    return Trainer(tmp_path / "second")


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Every file under a folder with its content."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return read
