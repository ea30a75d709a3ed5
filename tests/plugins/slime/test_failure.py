"""Signatures of failures: alike for the same crash, different for another, never empty."""

import subprocess
import sys

import pytest

from plugins.slime.failure import LIMIT, LONGEST_TEXT, normalised, signature


def frames(line: int) -> list[str]:
    return [f'  File "/root/slime/train.py", line {line}, in train', "    ray.get(ref)"]


def traceback(error: str, line: int = 52, prefix: str = "") -> list[str]:
    lines = ["Traceback (most recent call last):", *frames(line), error]
    return [prefix + text for text in lines]


def actor(pid: int, name: str = "MegatronTrainRayActor", ip: str = "") -> str:
    return f"\x1b[36m({name} pid={pid}{ip})\x1b[0m "


def test_the_last_exception_of_a_plain_traceback_is_named() -> None:
    tail = [
        "step 5",
        *traceback("KeyError: 'label'"),
        "",
        "The above exception was the direct cause of the following exception:",
        "",
        *traceback("ValueError: no label in row 17"),
        "bye",
    ]
    assert signature(tail, "exit code 1") == "ValueError: no label in row #"


def test_the_same_crash_on_another_pod_has_the_same_signature() -> None:
    def tail(pid: int, ip: str, attempt: int, stamp: str, address: str) -> list[str]:
        text = f"ray::RolloutManager.generate() (pid={pid}, ip={ip}, actor_id=4fe{pid}ab12cd34, repr=<M at {address}>)"
        return [
            f"{actor(pid)}[{stamp}] model.py:918 - step {pid}: {{'train/loss': 0.5}}",
            *traceback(f"ray.exceptions.RayTaskError(OSError): {text}", pid),
            *frames(9),
            f"OSError: [Errno 28] No space on /w/runs/r/sft/attempt-{attempt}/x.pt for 0x{pid:x} at {stamp}",
        ]

    one = tail(1234, "10.0.0.7", 1, "2026-11-22 20:13:27", "0x7f00aa")
    two = tail(98765, "172.16.3.99", 2, "2026-11-23 01:02:03", "0x7ffe12")
    assert (
        signature(one, "exit code 1")
        == signature(two, "SIGKILL")
        == ("OSError: [Errno #] No space on <path> for <address> at <time>")
    )


def test_other_crashes_have_other_signatures() -> None:
    found = {
        signature(traceback(error))
        for error in ("ValueError: a", "ValueError: b", "KeyError: a", "AssertionError", "torch.OutOfMemoryError: a")
    }
    assert len(found) == 5
    assert "AssertionError" in found


def test_actors_that_speak_at_the_same_time_are_read_apart() -> None:
    one, two = actor(11), actor(22, "RolloutManager", ", ip=10.0.0.7")
    first, second = traceback("ValueError: rank 0 lost", prefix=one), traceback("RuntimeError: NCCL", prefix=two)
    mixed = [line for pair in zip(first, second, strict=True) for line in pair]
    assert signature(mixed) == "RuntimeError: NCCL"
    assert signature([*mixed, f"{one}and {one}more"]) == "RuntimeError: NCCL"
    assert signature(
        [*mixed, *traceback("ray.exceptions.RayTaskError(ValueError): x"), *frames(9), "ValueError: y"]
    ) == ("ValueError: y")
    assert signature([*mixed, *traceback("OSError: at last", prefix=one)]) == "OSError: at last"
    assert signature([*traceback("ValueError: of the driver"), *mixed]) == "ValueError: of the driver"


def test_a_line_that_only_looks_like_an_exception_is_none() -> None:
    tail = ["Note: all is well", "  a line that is indented", "Warning: nothing", "last words 17"]
    assert signature(tail, "exit code 1") == "exit code #: last words #"


def test_a_traceback_whose_heading_was_cut_off_is_found() -> None:
    assert signature(traceback("ValueError: a")[1:]) == "ValueError: a"


@pytest.mark.parametrize(
    ("tail", "reason", "said"),
    [
        ([], "", "no word"),
        (["", "  "], "SIGKILL", "SIGKILL"),
        (["tinyslime: cannot write /w/a/attempt-3: No space"], "", "tinyslime: cannot write <path>: No space"),
        (["bar:  50%|##  | 1/2\rgone", ""], "exit code 2", "exit code #: gone"),
    ],
)
def test_without_an_exception_the_end_and_the_last_line_are_told(tail: list[str], reason: str, said: str) -> None:
    assert signature(tail, reason) == said


def test_a_signature_is_one_short_line() -> None:
    found = signature(traceback("ValueError: " + "long " * 1000))
    assert len(found) <= LIMIT and "\n" not in found
    assert normalised("a\tb\n c") == "a b c"


@pytest.mark.parametrize(
    ("text", "alike"),
    [
        ("at 2026-11-22T20:13:27.123Z", "at <time>"),
        ("id 123e4567-e89b-12d3-a456-426614174000", "id <id>"),
        ("actor 4fe1ab12cd34ef", "actor <id>"),
        ("peer 10.0.0.7:4312", "peer <host>"),
        ("/w/runs/r-1/sft/attempt-2/save/iter_0000019: torn", "<path>: torn"),
        ("2.5e-3 of -17 and iter_0000019", "# of # and iter_#"),
        ("decade of defaced", "decade of defaced"),
    ],
)
def test_what_differs_between_tries_is_made_alike(text: str, alike: str) -> None:
    assert normalised(text) == alike


def test_a_real_crash_of_python_is_read() -> None:
    program = (
        "def f():\n  try:\n    {}[3]\n  except KeyError as e:\n    raise RuntimeError('worker 8 died') from e\nf()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert signature(done.stderr.splitlines()) == "RuntimeError: worker # died"


@pytest.mark.parametrize(
    "text", ["-" * 40_000, "a" * 40_000, "/a" * 20_000, " " * 40_000 + "x", "7" * 40_000, "+." * 20_000]
)
def test_of_a_very_long_line_only_its_beginning_is_looked_at(text: str) -> None:
    assert normalised(text) == normalised(text[:LONGEST_TEXT])
    assert signature([text]) == signature([text[:LONGEST_TEXT]])


def test_a_folder_whose_name_begins_with_dashes_is_a_folder() -> None:
    assert normalised("at -x+y/w/z and --to=/a.b/c") == "at <path> and --to=<path>"
