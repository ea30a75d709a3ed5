"""Cursor, its correction, hook and proof against slime's own data source, in the order of its two train scripts.

Needs a checkout of slime alone: SLIME=/path/to/slime pytest -m slime
"""

import json
import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch

from plugins.slime import layout
from plugins.slime.cursor import prompts_never_trained, read_cursor
from plugins.slime.load_view import prepare
from plugins.slime.progress import format_loaded, format_skipped
from plugins.slime.resume import ResumeProof

ROOT = Path(__file__).parents[2]
SLIME = os.environ.get("SLIME", "")
PATCH = Path(SLIME) / "docker/patch/latest/megatron.patch"

pytestmark = [
    pytest.mark.slime,
    pytest.mark.skipif(
        not SLIME or not (Path(SLIME) / "slime/rollout/data_source.py").is_file(),
        reason="SLIME names no checkout of upstream slime",
    ),
]

# One attempt: rollouts `start` to `stop`, a save after each; prints slime's log lines and writes the hook's file.
ATTEMPT = """
import json, logging, sys
from argparse import Namespace

sys.path.insert(0, {slime!r})
import slime.rollout.data_source as source
from plugins.slime.hooks import custom_rollout_log
from plugins.tinyslime import data

source.load_tokenizer = source.load_processor = lambda *a, **k: None
folder, start, stop, order, load = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
logging.basicConfig(stream=sys.stdout, level=logging.INFO, datefmt="%Y-%m-%d %H:%M:%S",
                    format="[%(asctime)s] %(filename)s:%(lineno)d - %(message)s", force=True)
args = Namespace(
    rollout_global_dataset=True, prompt_data=folder + "/data.jsonl", hf_checkpoint="", dump_details=None,
    rollout_max_prompt_len=None, input_key="prompt", multimodal_keys=None, label_key=None, metadata_key="metadata",
    tool_key=None, apply_chat_template=False, apply_chat_template_kwargs=None, rollout_seed=42, rollout_shuffle=True,
    n_samples_per_prompt=2, buffer_filter_path=None, rollout_batch_size=4, over_sampling_batch_size=4,
    dynamic_sampling_filter_path=None, load_debug_rollout_data=None, reward_key=None, loss_type="policy_loss",
    rollout_function_path="slime.rollout.sglang_rollout.generate_rollout",
    data_source_path="slime.rollout.data_source.RolloutDataSourceWithBuffer",
    save=folder, load=load if start else None,
)
rows = source.RolloutDataSourceWithBuffer(args)
ours = data.DataSource([data.Sample(prompt=s.prompt) for s in rows.dataset.origin_samples], group_size=2, shuffle=True,
                       seed=42)
if start:
    rows.load(start - 1)
    ours.load_state_dict(source.torch.load(f"{{load}}/rollout/global_dataset_state_dict_{{start - 1}}.pt"))

def generate(rollout_id):
    groups, same = rows.get_samples(4), ours.groups(4)
    keys = [[(s.prompt, s.index, s.group_index) for s in group] for group in groups]
    assert keys == [[(s.prompt, s.index, s.group_index) for s in group] for group in same], (keys, same)
    custom_rollout_log(rollout_id, args, [s for group in groups for s in group], None, 1.0)
    return [group[0].prompt for group in groups]

def train(rollout_id, batch):
    print(json.dumps({{"trained": rollout_id, "batch": batch}}))

last = 10
if order == "sync":
    for rollout_id in range(start, stop):
        train(rollout_id, generate(rollout_id))
        rows.save(rollout_id)
else:
    following = generate(start)
    for rollout_id in range(start, stop):
        batch = following
        if rollout_id + 1 < last:
            following = generate(rollout_id + 1)
        train(rollout_id, batch)
        rows.save(rollout_id)
"""


def attempt(
    folder: Path, start: int, stop: int, order: str, load: Path | None = None
) -> tuple[list[str], list[str], dict[int, list[str]]]:
    """Log lines, hook lines, and the prompts that were trained by rollout. load: other than the save dir."""
    hook = folder / f"hook-{start}.jsonl"
    env = os.environ | {"PYTHONPATH": str(ROOT), "TRAINSTACK_PROGRESS_FILE": str(hook)}
    argv = [sys.executable, "-c", ATTEMPT.format(slime=SLIME), str(folder), str(start), str(stop), order]
    argv.append(str(load or folder))
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    trained = [json.loads(line) for line in lines if line.startswith("{")]
    return lines, hook.read_text().splitlines(), {record["trained"]: record["batch"] for record in trained}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"prompt": f"prompt {number}"} for number in range(11)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize("order", ["sync", "async"])
def test_the_first_rollout_after_a_resume_starts_where_the_saved_cursor_stands(folder: Path, order: str) -> None:
    lines, hooked, _ = attempt(folder, 0, 3, order)
    cold = ResumeProof(None, load_dir=folder)
    for line in lines:
        cold.hear_line(line)
    for line in hooked:
        cold.hear_hook_line(line)
    assert cold.verdict().proved, cold.verdict()

    cursor = read_cursor(layout.dataset_state_file(folder, 2))
    assert prompts_never_trained(cursor, 2, 4) == (0 if order == "sync" else 4)
    lines, hooked, _ = attempt(folder, 3, 6, order)
    proof = ResumeProof(2, cursor, load_dir=folder)
    proof.hear_line(format_loaded(2, folder, now=datetime.now()))
    for line in lines:
        proof.hear_line(line)
    for line in hooked:
        proof.hear_hook_line(line)
    verdict = proof.verdict()
    assert verdict.proved, verdict
    assert "data cursor's file" in [row.what for row in verdict.rows]  # "load metadata from ..." was understood


def test_a_missing_cursor_is_said_in_words_that_fail_the_proof(folder: Path) -> None:
    attempt(folder, 0, 3, "sync")
    (folder / "rollout/global_dataset_state_dict_2.pt").rename(folder / "away.pt")
    code = ATTEMPT.replace("ours.load_state_dict", "0 and ours.load_state_dict").format(slime=SLIME)
    argv = [sys.executable, "-c", code, str(folder), "3", "3", "sync", str(folder)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)
    proof = ResumeProof(2, load_dir=folder)
    for line in done.stdout.splitlines():
        proof.hear_line(line)
    assert proof.verdict().failed and "row 0" in proof.verdict().reason, done.stdout + done.stderr


@pytest.mark.parametrize(("order", "lost"), [("sync", 0), ("async", 1)])
def test_train_async_loses_one_batch_at_a_resume_and_train_none(folder: Path, order: str, lost: int) -> None:
    _, _, whole = attempt(folder, 0, 7, order)
    for name in folder.glob("rollout/*.pt"):
        name.unlink()
    _, _, one = attempt(folder, 0, 3, order)
    _, _, two = attempt(folder, 3, 7 - lost, order)
    resumed = [*one.values(), *two.values()]
    expected = list(whole.values())
    assert resumed == expected[:3] + expected[3 + lost :]


@pytest.mark.parametrize("cuts", [[1], [2], [4], [3, 6, 9]], ids=str)
def test_with_the_cursor_put_back_train_async_draws_what_an_uncut_run_draws(folder: Path, cuts: list[int]) -> None:
    """11 rows in batches of 4: the batch that is put back began in the epoch before, or ended with it, or neither."""
    _, _, expected = attempt(folder, 0, 10, "async")
    last = read_cursor(layout.dataset_state_file(folder, 9))
    shutil.rmtree(folder / "rollout")
    trained: dict[int, list[str]] = {}
    view, start = None, 0
    for stop in [*cuts, 10]:
        lines, hooked, batches = attempt(folder, start, stop, "async", view)
        trained |= batches
        if view is not None:
            state = layout.dataset_state_file(view, start - 1)
            proof = ResumeProof(start - 1, read_cursor(state), load_dir=view)
            for line in [*lines, *hooked, format_loaded(start - 1, view, now=datetime.now())]:
                (proof.hear_hook_line if line.startswith('{"kind"') else proof.hear_line)(line)
            assert proof.verdict().proved, proof.verdict()
        layout.iteration_dir(folder, stop - 1).mkdir()
        if stop < 10:
            sizes = {"prompts_per_rollout": 4, "samples_per_prompt": 2}
            view = prepare(folder, folder / "view", stop - 1, rows=11, **sizes)
            state = torch.load(layout.dataset_state_file(view, stop - 1), weights_only=True)
            assert state["sample_group_index"] == stop * 4 and state["metadata"] == {}
        start = stop
    assert trained == expected
    assert read_cursor(layout.dataset_state_file(folder, 9)) == last


def test_the_words_for_a_skipped_tensor_are_those_of_slimes_patch() -> None:
    assert '"{sh_ten.key} from model not in state dict, will skip"' in PATCH.read_text()
    assert format_skipped("{sh_ten.key}") == "{sh_ten.key} from model not in state dict, will skip"
