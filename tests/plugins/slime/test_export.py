"""Hugging Face folders: which can be loaded, what is wrong with the others, and one made by slime's tool."""

import ast
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from plugins.errors import StoreError, TornCheckpoint, UserError
from plugins.slime.export import (
    TOOL,
    add_tokenizer,
    check_export,
    check_export_inputs,
    export_by_tool,
    export_flags,
    has_tokenizer,
)
from tests.plugins.slime.hf_folders import CONFIG, SHARDS, write_hf, write_torch_dist
from tests.plugins.slime.stand_in_tools import write_tools

SLIME = os.environ.get("SLIME", "")
needs_slime = pytest.mark.skipif(
    not SLIME or not (Path(SLIME) / TOOL).is_file(), reason="SLIME names no checkout of upstream slime"
)


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    return write_hf(tmp_path / "hf")


def test_a_whole_folder_can_be_loaded(hf: Path) -> None:
    check_export(hf, tokenizer=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (hf / name).unlink()
    check_export(hf)
    with pytest.raises(TornCheckpoint, match="has no tokenizer"):
        check_export(hf, tokenizer=True)


@pytest.mark.parametrize("shard", SHARDS.values())
def test_an_index_whose_shards_have_not_all_come_is_no_export(hf: Path, shard: str) -> None:
    """slime's tool writes the index first, so this is what a killed export looks like."""
    (hf / shard).unlink()
    with pytest.raises(TornCheckpoint, match=rf"{shard}: is missing"):
        check_export(hf)


def test_a_shard_cut_at_any_place_is_noticed(hf: Path) -> None:
    shard = hf / SHARDS["a"]
    whole = shard.read_bytes()
    for size in {0, 4, 8, 20, len(whole) // 2, len(whole) - 1}:
        shard.write_bytes(whole[:size])
        with pytest.raises(TornCheckpoint, match=shard.name):
            check_export(hf)


def test_a_tensor_in_another_shard_than_the_index_says_is_missed(hf: Path) -> None:
    swapped = {"a": SHARDS["b"], "b": SHARDS["a"]}
    (hf / "model.safetensors.index.json").write_text(json.dumps({"weight_map": swapped}))
    with pytest.raises(TornCheckpoint, match="does not hold"):
        check_export(hf)


def header(shape: list[int], dtype: str, end: int) -> bytes:
    text = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * end


@pytest.mark.parametrize(
    ("shape", "dtype", "end", "whole"),
    [
        ([30, 10], "BF16", 600, True),
        ([30, 10], "BF16", 598, False),
        ([30, 11], "BF16", 600, False),
        ([30, 10], "F32", 600, False),
        ([], "F32", 4, True),
        ([3], "BOOL", 3, True),
        ([3], "F8_E4M3", 3, True),
        ([4], "F4", 2, True),
        ([2], "C64", 16, True),
        ([3], "NEW", 5, True),  # a type that is not known here is not judged
    ],
)
def test_a_tensor_must_have_the_bytes_that_its_shape_and_type_take(
    hf: Path, shape: list[int], dtype: str, end: int, whole: bool
) -> None:
    (hf / SHARDS["a"]).write_bytes(header(shape, dtype, end))
    if whole:
        check_export(hf)
        return
    with pytest.raises(TornCheckpoint, match=r"a has \d+ bytes where"):
        check_export(hf)


def test_an_index_may_only_name_files_of_its_folder(hf: Path) -> None:
    (hf / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(TornCheckpoint, match="where a file of the folder was expected"):
        check_export(hf)


def test_a_missing_tokenizer_is_taken_from_the_base_model_and_nothing_else(hf: Path, tmp_path: Path) -> None:
    base = write_hf(tmp_path / "base", {**CONFIG, "base": True})
    (base / "tokenizer_config.json").write_text('{"of": "base"}')
    (hf / "tokenizer.json").unlink()
    before = (hf / "config.json").read_bytes()
    assert add_tokenizer(hf, base) == ["tokenizer.json"]
    assert (hf / "config.json").read_bytes() == before
    assert (hf / "tokenizer_config.json").read_text() != '{"of": "base"}'  # what is there stays
    check_export(hf, tokenizer=True)
    (base / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer, and neither has"):
        add_tokenizer(hf, base)


def run(tmp_path: Path, hf: Path) -> Path:
    output = tmp_path / "out"
    slime = tmp_path / "slime"
    if not slime.exists():
        write_tools(slime)
        write_torch_dist(tmp_path / "iter_0000007")
    export_by_tool(
        tmp_path / "iter_0000007",
        output,
        hf,
        slime_dir=slime,
        megatron_dir=tmp_path / "megatron",
        log_file=tmp_path / "log",
        python=sys.executable,
    )
    return output


def test_folders_that_are_neither_a_checkpoint_nor_a_model_are_named_the_checkpoint_first(
    tmp_path: Path, hf: Path
) -> None:
    iteration, nowhere = tmp_path / "iter_0000007", tmp_path / "nope"
    with pytest.raises(UserError, match="iter_0000007: no such folder"):
        check_export_inputs(iteration, nowhere)
    iteration.mkdir()
    with pytest.raises(UserError, match=r"iter_0000007: has no \.metadata"):
        check_export_inputs(iteration, nowhere)
    iteration.rmdir()
    write_torch_dist(iteration)
    with pytest.raises(UserError, match=r"--origin .*/nope: has no config\.json"):
        check_export_inputs(iteration, nowhere)
    check_export_inputs(iteration, hf)


def test_a_checkpoint_without_an_export_gets_one_once(tmp_path: Path, hf: Path) -> None:
    output = run(tmp_path, hf)
    check_export(output, tokenizer=True)
    before = (tmp_path / "log").read_text()
    run(tmp_path, hf)
    assert (tmp_path / "log").read_text() == before


@pytest.mark.parametrize("step", range(1, 6))
def test_an_export_that_was_killed_never_has_its_name_and_is_made_anew(
    tmp_path: Path, hf: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIE_AT", str(step))
    with pytest.raises(UserError, match="exit code -9"):
        run(tmp_path, hf)
    assert not (tmp_path / "out").exists()
    monkeypatch.delenv("DIE_AT")
    check_export(run(tmp_path, hf), tokenizer=True)


def test_a_torn_folder_of_that_name_is_made_anew(tmp_path: Path, hf: Path) -> None:
    (write_hf(tmp_path / "out") / SHARDS["b"]).unlink()
    check_export(run(tmp_path, hf), tokenizer=True)


def test_a_tool_that_fails_is_said_with_its_last_lines(
    tmp_path: Path, hf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(
        UserError, match=r"The export of .*iter_0000007 failed with exit code 1(.*\n)+ValueError: no such"
    ):
        run(tmp_path, hf)


def test_a_log_that_cannot_be_written_is_a_matter_of_the_disk(tmp_path: Path, hf: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(StoreError, match="cannot be written"):
        run(tmp_path, hf)


def test_the_size_of_the_vocabulary_comes_from_the_language_model(hf: Path, tmp_path: Path) -> None:
    assert export_flags(Path("i"), Path("o"), hf)[-2:] == ["--vocab-size", "30"]
    seeing = write_hf(tmp_path / "vl", {"model_type": "x", "text_config": {"vocab_size": 77}})
    assert export_flags(Path("i"), Path("o"), seeing)[-2:] == ["--vocab-size", "77"]
    assert "--vocab-size" not in export_flags(Path("i"), Path("o"), write_hf(tmp_path / "no", {"model_type": "x"}))


PARSE = """
import ast, sys
source = open(sys.argv[1]).read()
main = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
parsing = [node for node in main.body if "parse" in ast.unparse(node) and "AutoConfig" not in ast.unparse(node)]
import argparse
sys.argv = sys.argv[1:]
exec(compile(ast.Module(parsing, []), "tool", "exec"))
print(args.input_dir, args.output_dir, args.origin_hf_dir, args.vocab_size, args.force)
"""


@pytest.mark.slime
@needs_slime
def test_slimes_tool_understands_our_command_line(hf: Path) -> None:
    argv = [sys.executable, "-c", PARSE, str(Path(SLIME) / TOOL), *export_flags(Path("/s/iter_7"), Path("/o"), hf)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["/s/iter_7", "/o", str(hf), "30", "False"], done.stderr


@pytest.mark.slime
@needs_slime
def test_slimes_tool_writes_in_the_order_of_the_stand_in() -> None:
    """Index, shards, then the small files of the origin: config and tokenizer come last."""
    text = (Path(SLIME) / TOOL).read_text()
    save = text[text.index("def save_tensors(") : text.index("def copy_assets(")]
    assert save.index("json.dump(metadata") < save.index("save_file(tensors")
    main = text[text.index('if __name__ == "__main__"') :]
    assert main.index("save_tensors(") < main.index("copy_assets(")
    assert "already exists. Use --force" in main


@pytest.mark.slime
@needs_slime
def test_what_save_hf_copies_is_enough_to_start_from(hf: Path, tmp_path: Path) -> None:
    """slime's own function, which copies everything but weights from --hf-checkpoint into each export."""
    source = (Path(SLIME) / "slime/backends/megatron_utils/hf_checkpoint_saver.py").read_text()
    wanted = ("_copy_hf_assets", "_is_hf_weight_file", "_HF_WEIGHT_FILE_NAMES", "_HF_WEIGHT_FILE_SUFFIXES")
    parts = [
        node
        for node in ast.parse(source).body
        if (isinstance(node, ast.FunctionDef) and node.name in wanted)
        or (isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in wanted)
    ]
    names: dict[str, object] = {}
    exec("import shutil\nfrom pathlib import Path", names)
    exec(compile(ast.Module(parts, []), "slime", "exec"), names)
    copied = tmp_path / "copied"
    copied.mkdir()
    copy = names["_copy_hf_assets"]
    assert callable(copy)
    copy(str(hf), copied)
    assert has_tokenizer(copied) and (copied / "config.json").exists()
    assert not list(copied.glob("*.safetensors")) and not (copied / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("name", ["out", "out.partial"])
def test_what_is_no_export_is_never_deleted_for_one(tmp_path: Path, hf: Path, name: str) -> None:
    (tmp_path / name / "models").mkdir(parents=True)
    (tmp_path / name / "models/precious").write_text("kept")
    with pytest.raises(UserError, match=f"{name}: is there already and is no Hugging Face export"):
        run(tmp_path, hf)
    assert (tmp_path / name / "models/precious").read_text() == "kept"


def test_a_file_in_the_place_of_an_export_stays(tmp_path: Path, hf: Path) -> None:
    (tmp_path / "out").write_text("kept")
    with pytest.raises(UserError, match="is there already"):
        run(tmp_path, hf)
    assert (tmp_path / "out").read_text() == "kept"


def test_the_verb_makes_an_export_of_a_checkpoint_that_has_none(
    tmp_path: Path, hf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.cli import main

    write_tools(tmp_path / "slime")
    write_torch_dist(tmp_path / "iter_0000007")
    words = ["export", tmp_path / "iter_0000007", tmp_path / "out", "--origin", hf, "--slime-dir", tmp_path / "slime"]
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words), "--python", sys.executable])
    assert ended.value.code in (None, 0), capsys.readouterr().err
    check_export(tmp_path / "out", tokenizer=True)
