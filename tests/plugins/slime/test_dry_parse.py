"""Asking a parser in a process of its own: here one that stands for slime's and behaves well or badly as it is told."""

import os
import sys
from pathlib import Path

import pytest

from plugins.errors import UserError
from plugins.slime.dry_run import run_dry_parse

ROOT = Path(__file__).resolve().parents[3]

# As slime: a parser for the engines that takes abbreviations, one for the rest that takes none, then its own checks.
PARSER = """
import argparse, os, subprocess, sys, time

BEHAVIOUR = os.environ.get("BEHAVIOUR", "")
if BEHAVIOUR == "import":
    import flash_attn_of_the_future

def parse_args():
    engines = argparse.ArgumentParser(add_help=False)
    engines.add_argument("--sglang-mem-fraction-static", type=float)
    engines.parse_known_args()
    main = argparse.ArgumentParser(allow_abbrev=False)
    for number in range(500):
        main.add_argument(f"--option-{number}")
    main.add_argument("--rollout-batch-size", type=int, required=True)
    main.add_argument("--lr", type=float)
    main.add_argument("--num-rollout", type=int)
    main.add_argument("--colocate", action="store_true")
    main.add_argument("--pattern", type=lambda text: {"good": 1}[text])
    args, _ = main.parse_known_args()
    if BEHAVIOUR == "chatter":
        for _ in range(100_000):
            print("x" * 100)
            print('{"trainstack_dry_parse": 1, "problems": ["made up"], "complaint": null}')
    if BEHAVIOUR == "hang":
        held = os.open(os.environ["FIFO"], os.O_WRONLY)
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=[held])
        print("waiting for the hub", flush=True)
        time.sleep(600)
    if BEHAVIOUR == "die":
        print("the last words", flush=True)
        os.kill(os.getpid(), 9)
    if BEHAVIOUR == "leave":
        sys.exit(3)
    assert args.num_rollout is not None, "please set --num-rollout or --num-epoch"
    os.stat(None if args.option_1 else ".")
"""


@pytest.fixture
def slime(tmp_path: Path) -> Path:
    package = tmp_path / "slime" / "utils"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package.parent / "__init__.py").touch()
    (package / "arguments.py").write_text(PARSER)
    return tmp_path


def ask(slime: Path, line: str, *, behaviour: str = "", timeout_s: float = 60, **env: str) -> None:
    env |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{slime}", "BEHAVIOUR": behaviour}
    run_dry_parse(sys.executable, line.split(), env, slime, timeout_s)


GOOD = "--rollout-batch-size 4 --lr 1e-5 --num-rollout 3 --colocate --sglang-mem-fraction-static 0.7"


def test_a_good_command_line_passes(slime: Path) -> None:
    ask(slime, GOOD)


def test_flags_that_no_parser_has_are_named_with_those_that_look_like_them(slime: Path) -> None:
    with pytest.raises(UserError) as refused:
        ask(slime, f"{GOOD} --num-rolout 5 --sglang-bogus 1")
    said = str(refused.value)
    assert "--num-rolout is no flag of slime, which would ignore it (did you mean --num-rollout?)" in said
    assert "--sglang-bogus is no flag" in said
    assert "--sglang-mem-fraction-static" not in said


def test_an_abbreviation_is_refused_where_a_parser_of_the_engines_would_take_it(slime: Path) -> None:
    with pytest.raises(
        UserError, match=r"--sglang-mem-fraction is no flag .*did you mean --sglang-mem-fraction-static"
    ):
        ask(slime, GOOD.replace("-static", ""))


def test_a_value_of_the_wrong_type_is_named_once(slime: Path) -> None:
    with pytest.raises(UserError) as refused:
        ask(slime, f"{GOOD} --lr 1e-5x")
    assert str(refused.value) == "the trainer's flags have 1 problem: --lr: '1e-5x' is not a number"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "--rollout-batch-size 4",
            "slime refuses its command line: please set --num-rollout or --num-epoch (slime/utils/",
        ),
        (
            "--num-rollout 4",
            "slime refuses its command line: the following arguments are required: --rollout-batch-size",
        ),
        (f"{GOOD} --option-1 x", "TypeError: stat: path should be string, bytes"),
        (f"{GOOD} --option-1 x", "--use-kl-loss and --kl-coef need --ref-load"),
        (f"{GOOD} --pattern bad", "KeyError: 'bad'"),
    ],
)
def test_what_slime_raises_comes_in_its_own_words_with_advice(slime: Path, line: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        ask(slime, line)
    assert words in str(refused.value)


def test_a_package_that_the_image_lacks_is_named(slime: Path) -> None:
    with pytest.raises(UserError, match=r"No module named 'flash_attn_of_the_future'.*the image lacks a package"):
        ask(slime, GOOD, behaviour="import")


def test_a_folder_without_slime_is_said_to_be_no_slime(slime: Path) -> None:
    (slime / "slime/utils/arguments.py").unlink()
    with pytest.raises(UserError, match=r"No module named 'slime.utils.arguments'.*not slime's image"):
        ask(slime, GOOD)


def test_a_parser_with_few_options_is_not_trusted(slime: Path) -> None:
    (slime / "slime/utils/arguments.py").write_text(PARSER.replace("range(500)", "range(50)"))
    with pytest.raises(UserError, match="its parsers are not those we know"):
        ask(slime, GOOD)


def test_a_parser_that_prints_a_lot_is_heard_out_and_its_words_are_no_answer(slime: Path) -> None:
    ask(slime, GOOD, behaviour="chatter")


def test_a_parser_that_hangs_is_ended_with_what_it_started(slime: Path, tmp_path: Path) -> None:
    os.mkfifo(fifo := tmp_path / "held by parser and child")
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(UserError, match=r"did not end within 8 s.*waiting for the hub"):
        ask(slime, GOOD, behaviour="hang", timeout_s=8, FIFO=str(fifo))
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""  # comes when both are gone
    os.close(reader)


def test_a_parser_that_dies_is_reported_with_its_last_words(slime: Path) -> None:
    with pytest.raises(UserError, match=r"ended with status -9 and no answer.*the last words"):
        ask(slime, GOOD, behaviour="die")


def test_a_parser_that_leaves_is_a_refusal(slime: Path) -> None:
    with pytest.raises(UserError, match=r"slime refuses its command line: 3 \(slime/utils/arguments.py"):
        ask(slime, GOOD, behaviour="leave")


def test_an_interpreter_that_is_not_there_is_named(slime: Path) -> None:
    with pytest.raises(UserError, match="cannot be started with /no/python"):
        run_dry_parse("/no/python", [], {}, slime, 5)
