"""The command line: bad input gives one clear message and an exit code, and starts nothing."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.cli import main

ROOT = Path(__file__).resolve().parent.parent.parent
CHAT = {"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]}
GOOD = "name: small\nlium: {base_url: emulator}\ntrainer: {kind: tinyslime}\n"
SFT = "sft: {data: rows.jsonl, num_rollout: 3, extra_args: {rollout-batch-size: 4}}\n"
CHANGED = ("LIUM_BASE_URL", "LIUM_API_KEY", "PREFECT_API_URL", "PREFECT_LOGGING_LEVEL", "PREFECT_CLIENT_MAX_RETRIES")


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


Cli = Callable[..., Said]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a working folder of this test, with good data in it."""
    for name in CHANGED:
        monkeypatch.setenv(name, "")  # so that what the command sets is undone with the test
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRAINSTACK_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(CHAT)}\n" * 8)
    return tmp_path


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*words: str) -> Said:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        code = ended.value.code
        return Said(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run


def recipe(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


def refused(cli: Cli, folder: Path, *words: object) -> str:
    """The one message of a command that is refused before any server was started."""
    said = cli(*words)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: ") and "Traceback" not in said.err
    assert list((folder / "state").glob("local/*.json")) == []
    return said.err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [unclosed\n", "is not valid YAML"),
        ("just words\n", "expected a mapping of keys"),
        (GOOD, "needs an 'sft:' or an 'rl:' section"),
        (GOOD + SFT + "sfft: {}\n", "recipe.yaml: sfft: unknown key; did you mean sft"),
        (
            GOOD + SFT.replace("num_rollout", "num_rolout"),
            "recipe.yaml: sft.num_rolout: unknown key; did you mean num_ro",
        ),
        (GOOD + SFT.replace(": 3", ": three"), "recipe.yaml: sft.num_rollout: Input should be a valid integer"),
        (
            GOOD + SFT + "pod: {gpu_count: 0}\n",
            "recipe.yaml: pod.gpu_count: Input should be greater than or equal to 1",
        ),
        (SFT, "recipe.yaml: name: missing"),
        (
            GOOD + SFT.replace("rollout-batch-size", "rollout-batch-sise"),
            "rollout-batch-sise (did you mean rollout-batch",
        ),
        (GOOD + SFT.replace("rows", "no-rows"), "no-rows.jsonl: the data file does not exist"),
        (
            GOOD + SFT.replace("num_rollout: 3", "num_epoch: 3, num_rollout: 3"),
            "exactly one of `num_rollout` and `num_epoch`",
        ),
        (GOOD + SFT + "checkpoint: {store: 'gopher:/x'}\n", "there is no store 'gopher'"),
        (GOOD + SFT + "secrets: [H8_UNSET_TOKEN]\n", "H8_UNSET_TOKEN not set"),
    ],
)
def test_a_bad_recipe_is_refused_with_file_key_and_what_was_expected(
    cli: Cli, own_folder: Path, text: str, said: str
) -> None:
    assert said in refused(cli, own_folder, "run", recipe(own_folder, text))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "bad.jsonl: has no rows"),
        ("{\n", "bad.jsonl:1: not a JSON object"),
        (
            json.dumps(CHAT) + '\n{"messages": [{"role": "user", "content": "x"}]}\n',
            "bad.jsonl:2: has no trainable token",
        ),
    ],
)
def test_bad_data_is_refused_with_file_and_row(cli: Cli, own_folder: Path, rows: str, said: str) -> None:
    (own_folder / "bad.jsonl").write_text(rows)
    assert said in refused(cli, own_folder, "run", recipe(own_folder, GOOD + SFT.replace("rows.jsonl", "bad.jsonl")))


def test_a_recipe_that_is_missing_is_named_with_the_places_looked_at(cli: Cli, own_folder: Path) -> None:
    assert refused(cli, own_folder, "run", "missing.yaml").startswith("Recipe not found: missing.yaml (looked at ")
    assert "is not valid YAML" in refused(cli, own_folder, "run", recipe(own_folder, "\ta: 1"))


@pytest.mark.parametrize("words", ["dpo", "sft,dpo", "sft,sft", ",", "SFT"])
def test_stages_that_do_not_exist_are_refused(cli: Cli, own_folder: Path, words: str) -> None:
    said = refused(cli, own_folder, "run", recipe(own_folder, GOOD + SFT), "--stages", words)
    assert said == f"--stages {words!r}: expected sft, rl or sft,rl."


def test_a_stage_that_the_recipe_lacks_is_refused(cli: Cli, own_folder: Path) -> None:
    said = refused(cli, own_folder, "run", recipe(own_folder, GOOD + SFT), "--stages", "sft,rl")
    assert said == "Recipe 'small' has no 'rl:' section, so there is no rl stage to run."


@pytest.mark.parametrize("run_id", ["Upper", "with space", "-begins", "ends-", "x" * 41])
def test_a_run_id_that_cannot_be_a_pods_name_is_refused(cli: Cli, own_folder: Path, run_id: str) -> None:
    said = refused(cli, own_folder, "run", recipe(own_folder, GOOD + SFT), f"--run-id={run_id}")
    assert said.startswith(f"Run id {run_id!r} will not do")


def test_a_message_with_brackets_and_a_long_path_is_printed_as_it_is(cli: Cli, own_folder: Path) -> None:
    folder = own_folder / ("a-long-name-of-a-folder-" * 4) / "[red]" / "[/tmp]"
    folder.mkdir(parents=True)
    said = refused(cli, own_folder, "run", recipe(folder, "name: 1\n"))
    assert all(line.startswith(f"{folder}/recipe.yaml: ") for line in said.splitlines())


def test_real_money_is_refused_before_any_server_starts(cli: Cli, own_folder: Path, monkeypatch) -> None:
    (own_folder / "key").write_text("")
    (own_folder / "key.pub").write_text("")
    monkeypatch.setenv("LIUM_SSH_KEY_PATH", str(own_folder / "key"))
    file = recipe(own_folder, GOOD.replace("emulator", "'https://lium.invalid/api'") + SFT)
    said = refused(cli, own_folder, "run", file)
    assert said.startswith("https://lium.invalid/api costs real money")


@pytest.mark.parametrize(
    "words", [["status", "no-such-run"], ["status"], ["logs", "no-such-run"], ["stop", "no-such-run"]]
)
def test_looking_up_a_run_starts_no_server_and_says_how_to_start_one(cli: Cli, own_folder: Path, words) -> None:
    said = refused(cli, own_folder, *words)
    assert said.startswith("No Prefect API is configured and no local server is running") and "trainstack serve" in said


def test_down_with_nothing_running_is_fine(cli: Cli, own_folder: Path) -> None:
    said = cli("down")
    assert (said.code, said.out, said.err) == (0, "", "no local server was running\n")


def test_an_unknown_command_or_option_is_a_usage_error(cli: Cli, own_folder: Path) -> None:
    assert cli("frobnicate").code == cli("run").code == cli("status", "--jsn").code == 2


def test_gsm8k_rows_become_chat_rows(cli: Cli, own_folder: Path) -> None:
    source = own_folder / "in.jsonl"
    source.write_text('{"question": "1+1?", "answer": "2 #### 2"}\n')
    said = cli("data", "gsm8k", str(source), "out.jsonl")
    assert (said.code, said.err) == (0, "") and "1 rows written" in said.out
    assert json.loads((own_folder / "out.jsonl").read_text())["messages"][1] == {
        "role": "assistant",
        "content": "2 #### 2",
    }


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (None, "in.jsonl: no such file"),
        ("", "in.jsonl: has no rows"),
        ('{"question": "1+1?", "answer": "2"}\n{"question": ""}\n', "in.jsonl: row 2: 'question' is empty"),
        ("[]\n", "in.jsonl: row 1: expected an object"),
    ],
)
def test_gsm8k_rows_that_are_wrong_are_named_and_nothing_is_written(
    cli: Cli, own_folder: Path, rows: str | None, said: str
) -> None:
    if rows is not None:
        (own_folder / "in.jsonl").write_text(rows)
    assert said in refused(cli, own_folder, "data", "gsm8k", own_folder / "in.jsonl", "out.jsonl")
    assert not (own_folder / "out.jsonl").exists()


def test_the_other_data_sets_are_written_with_as_many_rows_as_asked(cli: Cli, own_folder: Path) -> None:
    for name in ("arithmetic-sft", "arithmetic-rl"):
        assert cli("data", name, f"{name}.jsonl", "--rows", "7").code == 0
        assert len((own_folder / f"{name}.jsonl").read_text().splitlines()) == 7


def process(*argv: object) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, as a person starts it."""
    words = [sys.executable, *map(str, argv)]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "LIUM_"))}
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", ["sft", "rl", "post_training"])
def test_a_flow_file_is_a_script_with_the_same_messages(own_folder: Path, name: str) -> None:
    done = process(ROOT / "flows" / f"{name}.py", "missing.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: Recipe not found: missing.yaml") and done.stderr.count("\n") == 1
    assert not (own_folder / "state").exists()


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_an_emulator_on_a_taken_port_says_so_and_ends(own_folder: Path, taken_port: int) -> None:
    done = process("-m", "flows.cli", "emulator", "--port", taken_port)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"emulator: cannot listen on 127.0.0.1:{taken_port} (Address already in use); "
        "give another --port, or 0 for any\n"
    )


def test_an_emulator_that_would_listen_for_the_world_is_refused(cli: Cli) -> None:
    said = cli("emulator", "--host", "0.0.0.0", "--port", "0")
    assert said.code == 2 and "listens on loopback only" in said.err


def test_a_plan_of_stages_shows_whether_they_fit_and_their_command_lines(cli: Cli, own_folder: Path) -> None:
    from rich.console import Console

    from blocks.recipe import load_recipe
    from tasks.stage_plan import plan_stages, stages_view

    (own_folder / "prompts.jsonl").write_text('{"prompt": "1+1", "label": "2"}\n' * 64)
    text = (
        "name: small\nlium: {base_url: emulator}\npod: {gpu: H100}\n"
        "model: {hf_checkpoint: /models/q, name: qwen3-4B, args: {num-layers: 36, hidden-size: 2560, "
        "vocab-size: 151936, ffn-hidden-size: 9728}}\n"
        "rl: {data: prompts.jsonl, num_rollout: 3, environment: {task: arithmetic}, "
        "parallelism: {max_tokens_per_gpu: 4096}}\n"
    )
    console = Console(width=200, record=True)
    console.print(stages_view(plan_stages(load_recipe(recipe(own_folder, text))), commands=True))
    said = console.export_text()
    assert "rl: 3 rollouts, 64 rows of data" in said
    assert "GB on each GPU that trains" in said and "of 80 GB" in said
    assert "advice: rl.parallelism.max_tokens_per_gpu: an answer of 8192 tokens" in said
    assert "python3 train.py" in said and "--num-rollout 3" in said


def test_data_of_the_hub_that_cannot_be_reached_does_not_keep_a_plan_from_being_shown(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blocks.recipe import load_recipe
    from plugins.errors import ControlPlaneError
    from tasks.stage_plan import plan_stages

    def silent(*_: object) -> Path:
        raise ControlPlaneError("the Hub does not answer")

    monkeypatch.setattr("plugins.datasets.hub.fetch_dataset", silent)
    text = (
        "name: small\nlium: {base_url: emulator}\nmodel: {hf_checkpoint: /models/q, name: qwen3-0.6B}\n"
        "sft: {data: hf://datasets/a/b/c.parquet, num_rollout: 3}\n"
    )
    (plan,) = plan_stages(load_recipe(recipe(own_folder, text)))
    assert plan.data is None and "does not answer" in str(plan.unseen)
    assert plan.launch is not None and plan.launch.expected_last == 2
