"""Our log hooks under slime's own contract tests for plugins.

Needs a checkout: SLIME=... MEGATRON=... pytest -m slime. The generate function's contract is in tests/plugins/http_env.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from plugins.slime.hooks import PROGRESS_FILE
from plugins.slime.progress import parse_hook_line
from tests.slime_real import ROOT, SLIME, needs_slime

pytestmark = needs_slime

# slime's contract looks for a mark that its own reference functions leave on the arguments; ours leave none, so it is
# set around them. `wraps` keeps their signatures, which the contract compares.
PLUGIN = """
import functools
from plugins.slime import hooks

def marked(hook, mark):
    @functools.wraps(hook)
    def call(rollout_id, args, *rest):
        setattr(args, mark, rollout_id)
        return hook(rollout_id, args, *rest)
    return call

rollout_log = marked(hooks.custom_rollout_log, "logged_rollout_id")
eval_log = marked(hooks.custom_eval_rollout_log, "logged_eval_rollout_id")
"""


def contract(file: str, folder: Path, **env: str) -> str:
    """Run one of slime's contract tests from its checkout's root, as its documentation asks."""
    if importlib.util.find_spec("pylatexenc") is None:  # which only slime's maths rewards use
        (folder / "pylatexenc").mkdir()
        (folder / "pylatexenc/__init__.py").write_text("")
        (folder / "pylatexenc/latex2text.py").write_text("")
    path = os.pathsep.join(map(str, (ROOT, folder)))
    done = subprocess.run(
        [sys.executable, str(SLIME.resolve() / "tests/plugin_contracts" / file), "-p", "no:cacheprovider"],
        cwd=SLIME,
        env=os.environ | {"PYTHONPATH": path} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_both_log_hooks_pass_slimes_contract_and_write_their_lines(tmp_path: Path) -> None:
    (tmp_path / "marked_hooks.py").write_text(PLUGIN)
    file = tmp_path / "progress.jsonl"
    said = contract(
        "test_plugin_runtime_hook_contracts.py",
        tmp_path,
        SLIME_CONTRACT_CUSTOM_ROLLOUT_LOG_FUNCTION_PATH="marked_hooks.rollout_log",
        SLIME_CONTRACT_CUSTOM_EVAL_ROLLOUT_LOG_FUNCTION_PATH="marked_hooks.eval_log",
        **{PROGRESS_FILE: str(file)},
    )
    assert "10 passed" in said
    points = [parse_hook_line(line) for line in file.read_text().splitlines()]
    assert [(point.kind, point.number) for point in points if point] == [("rollout", 3), ("eval", 4)]
    assert points[1] is not None and points[1].values["eval/eval_set"] == 1.0


def test_slimes_other_contracts_hold_with_our_code_on_the_path(tmp_path: Path) -> None:
    """Nothing of ours (a `tasks`, a `tests` package) may hide a module of slime's."""
    assert "6 passed" in contract("test_plugin_rollout_contracts.py", tmp_path)
