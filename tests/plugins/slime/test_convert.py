"""Converting a model: only what must be, once, and never one that stopped on its way; beside slime's own tool."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plugins.errors import TornCheckpoint, UserError
from plugins.slime import convert as module
from plugins.slime.convert import (
    LOADED_AS_IS,
    Conversion,
    check_converted,
    convert,
    loaded_as_is,
    needs_conversion,
    processes,
)
from plugins.slime.layout import TRACKER
from plugins.slime.tool import run_tool
from tests.plugins.slime.hf_folders import write_hf, write_torch_dist
from tests.plugins.slime.stand_in_tools import write_tools

SLIME = os.environ.get("SLIME", "")
TOOL = Path(SLIME) / "tools/convert_hf_to_torch_dist.py"
needs_slime = pytest.mark.skipif(not SLIME or not TOOL.is_file(), reason="SLIME names no checkout of upstream slime")
FLAGS = ["--num-layers", "2", "--hidden-size", "10", "--swiglu"]
STATES = {1: "nothing", 2: "iter_0000001 without a tracker", 3: "tracker 1", 4: "release without release/", 5: "whole"}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Conversion:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    hf = write_hf(tmp_path / "models/m", {"model_type": "olmo", "num_hidden_layers": 2, "hidden_size": 10})
    return Conversion(
        hf=hf,
        target=tmp_path / "models/m.torch_dist",
        slime_dir=write_tools(tmp_path / "slime"),
        megatron_dir=tmp_path / "megatron",
        architecture=FLAGS,
        args={"make-vocab-size-divisible-by": 8, "tensor-model-parallel-size": 2, "sequence-parallel": True},
    )


def said(job: Conversion) -> str:
    return (job.slime_dir / "log").read_text()


def run(job: Conversion) -> Path:
    return convert(job, log_file=job.slime_dir / "log")


def test_a_model_is_converted_once_with_its_architecture_and_without_the_trainings_layout(job: Conversion) -> None:
    assert run(job) == job.target
    check_converted(job.target)
    flags = json.loads(next(line for line in said(job).splitlines() if line.startswith("FLAGS")).removeprefix("FLAGS"))
    assert flags == [*FLAGS, "--make-vocab-size-divisible-by", "8"]
    assert not job.partial.exists()
    before = said(job)
    assert run(job) == job.target and said(job) == before


@pytest.mark.parametrize("step", STATES, ids=STATES.get)
def test_a_conversion_that_was_killed_is_no_converted_model_and_is_done_again(
    job: Conversion, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIE_AT", str(step))
    with pytest.raises(UserError, match=r"exit code -9 \(killed from outside; was the memory used up\?\)"):
        run(job)
    assert not job.target.exists()
    if step < 5:
        with pytest.raises(TornCheckpoint):
            check_converted(job.partial)
    monkeypatch.delenv("DIE_AT")
    check_converted(run(job))


def made(folder: Path, state: str) -> Path:
    """A folder as the tool leaves it under its own name, when somebody ran it by hand."""
    folder.mkdir()
    if state == "empty":
        return folder
    write_torch_dist(folder / "iter_0000001")
    (folder / TRACKER).write_text("1" if state == "tracker 1" else "release")
    if state in ("not moved", "tracker 1"):
        return folder
    (folder / "iter_0000001").rename(folder / "release")
    if state == "no release":
        shutil.rmtree(folder / "release")
    elif state == "cut shard":
        shard = next((folder / "release").glob("*.distcp"))
        shard.write_bytes(shard.read_bytes()[:-1])
    elif state == "missing metadata":
        (folder / "release/.metadata").unlink()
    elif state == "torn tracker":
        (folder / TRACKER).write_text("")
    elif state == "both":
        write_torch_dist(folder / "iter_0000001")
    return folder


@pytest.mark.parametrize(
    "state",
    ["empty", "tracker 1", "not moved", "no release", "cut shard", "missing metadata", "torn tracker", "both"],
)
def test_a_folder_that_is_there_and_not_whole_is_made_anew(job: Conversion, state: str) -> None:
    with pytest.raises(TornCheckpoint):
        check_converted(made(job.target, state))
    check_converted(run(job))


def test_a_whole_folder_that_somebody_else_made_is_taken(job: Conversion) -> None:
    made(job.target, "whole")
    assert run(job) == job.target
    assert not (job.slime_dir / "log").exists()


def test_a_tool_that_fails_is_the_users_matter_with_its_last_lines(
    job: Conversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(UserError, match=r"exit code 1; .*Its last lines:\n(.*\n)*ValueError: no such layer"):
        run(job)


def test_flags_that_contradict_the_config_are_refused_before_the_tool_makes_garbage_of_them(job: Conversion) -> None:
    (job.hf / "config.json").write_text('{"model_type": "olmo", "rope_theta": 500000, "hidden_size": 10}')
    with pytest.raises(UserError, match=r"rope_theta is 500000 in the model's config\.json, --rotary-base is 10000"):
        run(job)


def test_without_an_architecture_nothing_can_be_converted(job: Conversion) -> None:
    bare = Conversion(job.hf, job.target, job.slime_dir, job.megatron_dir, [])
    with pytest.raises(UserError, match=r"set `model\.name`"):
        run(bare)


def test_no_slime_on_the_pod_is_said(job: Conversion) -> None:
    gone = Conversion(job.hf, job.target, job.slime_dir / "gone", job.megatron_dir, FLAGS)
    with pytest.raises(UserError, match=r"could not be started: .* is slime in .*gone on the pod\?"):
        convert(gone, log_file=job.slime_dir / "log")


def test_whoever_looks_after_a_tool_can_end_it_and_all_it_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    code = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open("new", "w").write(str(child.pid))
os.rename("new", {str(child)!r})
time.sleep(600)
"""

    def each() -> None:
        if child.exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tool(
            "x", [sys.executable, "-c", code], cwd=tmp_path, env={}, log_file=tmp_path / "l", each=each, look_s=0.01
        )
    pid = int(child.read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the tool's child lives on"


@pytest.mark.parametrize(
    ("gpus", "layers", "number"),
    [(1, 36, 1), (8, 36, 8), (8, 10, 5), (3, 4, 2), (8, 2, 2), (7, 24, 6), (6, 5, 5), (4, 61, 4), (8, 62, 8)],
)
def test_as_many_processes_as_leave_layers_for_the_last(gpus: int, layers: int, number: int) -> None:
    assert processes(gpus, layers) == number


def test_several_gpus_share_the_work(job: Conversion) -> None:
    many = Conversion(job.hf, job.target, job.slime_dir, job.megatron_dir, ["--num-layers", "36"], gpus=8)
    assert many.argv()[:6] == ["python3", "-m", "torch.distributed.run", "--nproc-per-node", "8", module.TOOL]


def slime_with(folder: Path, loaders: str | None, tool: str = "") -> Path:
    """A checkout of slime as far as it tells what it can load."""
    (folder / "slime/backends").mkdir(parents=True)
    if loaders is not None:
        (folder / module.LOADERS).parent.mkdir(parents=True)
        (folder / module.LOADERS).write_text(loaders)
    (folder / "tools").mkdir()
    (folder / module.TOOL).write_text(tool)
    return folder


def test_the_slime_on_the_pod_decides_what_is_converted(tmp_path: Path) -> None:
    assert not needs_conversion({"model_type": "qwen3"}, tmp_path) and needs_conversion(
        {"model_type": "olmo"}, tmp_path
    )
    old = slime_with(tmp_path / "old", None, "from mbridge import AutoBridge")
    assert needs_conversion({"model_type": "qwen3"}, old)
    new = slime_with(tmp_path / "new", '_LOADERS = {"olmo": 1}', "from slime.hf_to_megatron import load_hf_weights")
    assert not needs_conversion({"model_type": "olmo"}, new)
    odd = slime_with(tmp_path / "odd", "_LOADERS = make()")
    assert not needs_conversion({"model_type": "qwen3"}, odd)


def test_a_type_that_can_neither_be_loaded_nor_converted_is_refused_with_what_can(tmp_path: Path) -> None:
    new = slime_with(tmp_path / "new", '_LOADERS = {"olmo": 1}', "from slime.hf_to_megatron import load_hf_weights")
    with pytest.raises(
        UserError, match=r"neither load nor convert a model of type 'gemma'; it knows olmo\. .*ref-load"
    ):
        needs_conversion({"model_type": "gemma"}, new)


@pytest.mark.slime
@needs_slime
def test_the_model_types_are_those_of_slimes_own_table() -> None:
    assert loaded_as_is(Path(SLIME)) == LOADED_AS_IS
    assert not needs_conversion({"model_type": "qwen3"}, Path(SLIME))


@pytest.mark.slime
@needs_slime
def test_slimes_tool_reads_models_by_the_same_table_as_the_trainer(tmp_path: Path) -> None:
    text = TOOL.read_text()
    assert "from slime.backends.megatron_utils.hf_to_megatron import load_hf_weights" in text
    assert "load_hf_weights(args, model, hf_model_path)" in text
    with pytest.raises(UserError, match="can neither load nor convert a model of type 'olmo'"):
        needs_conversion({"model_type": "olmo"}, Path(SLIME))


@pytest.mark.slime
@needs_slime
def test_slimes_tool_writes_in_the_order_of_the_stand_in() -> None:
    """save_checkpoint(1), which ends with the tracker "1"; tracker "release"; the folder moved."""
    text = TOOL.read_text()
    saved, tracker, moved = (
        re.search(pattern, text)
        for pattern in (r"save_checkpoint\(1, ", r'\.write\("release"\)', r"shutil\.move\(source_dir, target_dir\)")
    )
    assert saved and tracker and moved and saved.start() < tracker.start() < moved.start()
    assert "get_checkpoint_name(args.save, 1, False, return_base_dir=True)" in text
    assert "get_checkpoint_name(args.save, -1, True, return_base_dir=True)" in text  # <save>/release


MEGATRON = os.environ.get("MEGATRON", "")


@pytest.mark.slime
@pytest.mark.skipif(
    not MEGATRON or not (Path(MEGATRON) / "megatron/training/checkpointing.py").is_file(),
    reason="MEGATRON names no checkout of Megatron-LM",
)
def test_megatron_writes_the_tracker_after_all_files_and_names_folders_as_we_do() -> None:
    text = (Path(MEGATRON) / "megatron/training/checkpointing.py").read_text()
    save = text[text.index("def save_checkpoint(") :]
    written, tracked = (
        save.index("dist_checkpointing.save("),
        save.index('f.write("release" if release else str(iteration))'),
    )
    assert written < tracked
    name = text[text.index("def get_checkpoint_name(") :][:900]
    assert "directory = 'release'" in name and "'iter_{:07d}'.format(iteration)" in name


# The tool's own get_args with stubs for Megatron and torch: prints the layout it chose.
CHOOSE = """
import ast, os, sys
from argparse import Namespace
source = open(sys.argv[1]).read()
tree = ast.parse(source)
function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "get_args")
layers = int(sys.argv[2])
names = {
    "os": os,
    "add_convertion_args": None,
    "parse_args": lambda _add: Namespace(
        num_layers=layers, pipeline_model_parallel_size=1, decoder_last_pipeline_num_layers=None
    ),
    "set_default_megatron_args": lambda args: args,
    "validate_args": lambda args: None,
}
exec(compile(ast.Module([function], []), "tool", "exec"), names)
args = names["get_args"]()
print("PP", args.pipeline_model_parallel_size)
"""


@pytest.mark.slime
@needs_slime
@pytest.mark.parametrize(("gpus", "layers"), [(8, 36), (8, 10), (3, 4), (7, 24), (4, 61), (8, 2), (1, 28)])
def test_slimes_tool_takes_the_number_of_processes_we_give_it(gpus: int, layers: int) -> None:
    number = processes(gpus, layers)
    argv = [sys.executable, "-c", CHOOSE, str(TOOL), str(layers)]
    env = {**os.environ, "WORLD_SIZE": str(number)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"PP {number}"
