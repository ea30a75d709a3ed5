"""The trainer in processes of its own, for the tests of this folder."""

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SFT = shlex.split("""
    --rollout-function-path slime.rollout.sft_rollout.generate_rollout --loss-type sft_loss --debug-train-only
    --input-key messages --rollout-shuffle --calculate-per-token-loss --use-dynamic-batch-size
    --max-tokens-per-gpu 512 --rollout-batch-size 4 --lr 3e-3 --lr-decay-style cosine --lr-warmup-fraction 0.1
    --num-layers 1 --hidden-size 32 --ffn-hidden-size 64 --num-attention-heads 2
""")
RL = shlex.split("""
    --custom-generate-function-path tinyslime_probe.generate --input-key prompt --label-key label
    --apply-chat-template --rollout-shuffle --rollout-batch-size 4 --n-samples-per-prompt 4
    --use-dynamic-batch-size --max-tokens-per-gpu 1024 --rollout-max-response-len 6 --lr 3e-3 --lr-decay-style
    constant --use-rollout-logprobs --num-layers 1 --hidden-size 32 --ffn-hidden-size 64 --num-attention-heads 2
""")


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train_here(*argv, code=0, ahead=False):
    """The trainer in this process (faster); gives standard output, or standard error for another exit code."""
    from plugins.tinyslime.train import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        got = main([*map(str, argv)], ahead=ahead)
    assert got == code, f"exit code {got}\n{out.getvalue()[-2000:]}\n{err.getvalue()[-4000:]}"
    return err.getvalue() if code else out.getvalue()


def start(argv, module="plugins.tinyslime.train", **env):
    """The trainer as its own process, as a stage starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, argv)],
        env=os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parents[2]}", "PYTHONUNBUFFERED": "1"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(*argv, code=0, **env):
    """Run to the end; gives standard output, or standard error when another exit code is expected."""
    process = start(argv, **env)
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, f"exit code {process.returncode}\n{out[-2000:]}\n{err[-4000:]}"
    return err if code else out
