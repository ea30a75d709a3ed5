"""Flags, data, masks, schedule, advantages and the endpoint, each by itself."""

import asyncio
import json
import subprocess
import sys

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tinyslime_runs import chat, write_jsonl

from plugins.errors import UserError
from plugins.tinyslime import data, flags
from plugins.tinyslime.config import ModelConfig
from plugins.tinyslime.grpo import kl_estimate, normalise, row_mask
from plugins.tinyslime.inference import Engine, RolloutServer
from plugins.tinyslime.model import TinyLlama
from plugins.tinyslime.sample import Sample
from plugins.tinyslime.step import Schedule, token_weights
from plugins.tinyslime.tokenizer import ByteTokenizer, chat_tokens

BASE = ["--prompt-data", "x", "--rollout-batch-size", "4", "--num-rollout", "2", "--rollout-max-response-len", "8"]


def test_flags_need_no_torch():
    code = "import sys; from plugins.tinyslime import flags; flags.parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_unknown_flags_are_named_with_what_they_look_like():
    unknown = flags.unknown_flags(["--save-intervall", "5", "--lerning-rate=3", "--lr", "-1", "--zzz"])
    assert [flag for flag, _ in unknown] == ["--save-intervall", "--lerning-rate", "--zzz"]
    assert "--save-interval" in unknown[0][1]
    assert unknown[2][1] == []
    with pytest.raises(UserError, match="--num-rollou "):
        flags.parse([*BASE, "--num-rollou", "3"])  # no abbreviations either


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--global-batch-size 3", "= 4 is not --global-batch-size 3"),
        ("--n-samples-per-prompt 2 --num-steps-per-rollout 3", "is not"),
        ("--save x", "--save-interval belong"),
        ("--save x --save-interval 1 --save-hf y", "{rollout_id}"),
        ("--loss-type sft_loss", "belong together"),
        ("--debug-train-only", "sft_loss"),
        ("--lr fast", "--lr"),
        ("--advantage-estimator ppo", "--advantage-estimator"),
        ("--use-kl-loss", "--ref-load"),
        ("--rollout-temperature 0", "temperature"),
    ],
)
def test_flags_that_do_not_fit_each_other_are_refused(more, said):
    with pytest.raises(UserError) as caught:
        flags.parse([*BASE, *more.split()])
    assert said in str(caught.value)


def test_batch_flags_fill_each_other_in():
    args = flags.parse([*BASE, "--n-samples-per-prompt", "4", "--num-steps-per-rollout", "2"])
    assert args.global_batch_size == 8
    args = flags.parse([*BASE, "--n-samples-per-prompt", "4", "--global-batch-size", "4"])
    assert args.num_steps_per_rollout == 4


@given(st.text(), st.text(min_size=1))
def test_only_what_the_assistant_says_and_its_end_are_trained(question, answer):
    for name in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        question, answer = question.replace(name, "a"), answer.replace(name, "a")
    tokenizer = ByteTokenizer()
    messages = [*chat(question, answer)["messages"], {"role": "user", "content": "x"}]
    tokens, mask = chat_tokens(tokenizer, messages)
    assert tokenizer.decode(tokens) == tokenizer.apply_chat_template(messages)
    trained = [token for token, on in zip(tokens, mask, strict=True) if on]
    assert tokenizer.decode(trained) == answer + "<|im_end|>"


def test_a_message_can_be_left_out_of_the_loss():
    messages = [*chat("a", "b")["messages"], {"role": "assistant", "content": "c"}]
    messages[1]["step_loss_mask"] = 0
    tokens, mask = chat_tokens(ByteTokenizer(), messages)
    assert [chr(token) for token, on in zip(tokens, mask, strict=True) if on and token < 256] == ["c"]


def test_parquet_and_jsonl_give_the_same_samples_and_long_rows_are_counted(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [chat("1+1=", "2"), chat("x" * 10, "y" * 300)]
    lines = write_jsonl(tmp_path / "a.jsonl", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("no")
    read = [data.load_chats(str(path), "messages", ByteTokenizer(), 100) for path in (lines, tmp_path / "a.parquet")]
    assert read[0] == read[1]
    assert read[0][1] == 1
    assert [len(sample.tokens) for sample in read[0][0]] == [
        len(chat_tokens(ByteTokenizer(), rows[0]["messages"])[0]),
        100,
    ]
    assert len(data.load_chats(f"{lines}@[1:2]", "messages", ByteTokenizer(), 100)[0]) == 1
    with pytest.raises(UserError, match=r"b\.parquet: not a readable parquet file"):
        data.load_chats(str(tmp_path / "b.parquet"), "messages", ByteTokenizer(), 100)


@given(st.integers(1, 9), st.lists(st.integers(1, 12), max_size=8), st.booleans())
def test_the_cursor_goes_on_where_its_state_was_taken(rows, takes, shuffle):
    def source():
        samples = [Sample(prompt=str(number)) for number in range(rows)]
        return data.DataSource(samples, group_size=2, shuffle=shuffle, seed=3)

    def seen(groups):
        return [(s.prompt, s.index, s.group_index) for group in groups for s in group]

    one = source()
    for count in takes:
        one.groups(count)
    two = source()
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert seen(one.groups(7)) == seen(two.groups(7))


def test_every_row_is_seen_once_in_an_epoch():
    source = data.DataSource([Sample(prompt=str(n)) for n in range(10)], group_size=1, shuffle=True, seed=1)
    epochs = [[group[0].prompt for group in source.groups(10)] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(map(str, range(10)))
    assert epochs[0] != epochs[1]


@given(st.lists(st.integers(2, 40), min_size=1, max_size=20), st.integers(40, 100))
def test_micro_batches_hold_every_row_once_within_the_limit(lengths, limit):
    tokens = [list(range(length)) for length in lengths]
    masks = [[0, *([1] * (length - 1))] for length in lengths]
    batches = data.micro_batches(tokens, masks, max_tokens=limit, max_rows=1)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(lengths)))
    for batch in batches:
        assert batch.ids.numel() <= limit
        values = [torch.tensor(row[1:]) for row in tokens]
        assert torch.equal(batch.per_token(values), batch.ids[:, 1:][batch.targets])


def test_weights_are_a_mean_over_tokens_or_over_rows():
    masks = [[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    per_token = token_weights(masks, per_token=True)
    per_row = token_weights(masks, per_token=False)
    assert torch.cat(per_token).tolist() == [0.25] * 4
    assert torch.cat(per_row).tolist() == pytest.approx([1 / 6] * 3 + [1 / 2])


def test_removed_samples_take_no_part_in_the_advantage_and_have_no_mask():
    group = [Sample(reward=1.0), Sample(reward=0.0), Sample(reward=50.0, remove_sample=True)]
    scores = normalise([group])
    assert scores == pytest.approx([0.7071, -0.7071, 0.0], abs=1e-3)
    assert normalise([[Sample(reward=3.0, remove_sample=True)]]) == [0.0]
    assert normalise([[Sample(reward=3.0)]]) == [0.0]
    gone = Sample(tokens=[1, 2, 3], response_length=2, loss_mask=[1, 1], remove_sample=True)
    assert row_mask(gone) == [0, 0, 0]
    assert row_mask(Sample(tokens=[1, 2, 3], response_length=2)) == [0, 1, 1]


def test_kl_estimates_are_zero_at_the_reference_and_k3_is_never_negative():
    ours, ref = torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.0])
    assert all(kl_estimate(ours, ours, kind).abs().sum() == 0 for kind in ("k1", "k2", "k3", "low_var_kl"))
    assert kl_estimate(ours, ref, "k1").tolist() == [1.0, -1.0]
    assert (kl_estimate(ours, ref, "low_var_kl") > 0).all()


def test_the_schedule_warms_up_and_decays():
    line = "--lr 1 --min-lr 0.1 --lr-decay-style cosine --lr-warmup-iters 2 --global-batch-size 4"
    args = flags.parse([*BASE, *line.split()])
    schedule = Schedule(args, 12)
    rates = []
    for _ in range(14):
        rates.append(schedule.lr)
        schedule.num_steps += 4
    assert rates[:3] == [0.0, 0.5, 1.0]
    assert rates[2:13] == sorted(rates[2:13], reverse=True)
    assert rates[7] == pytest.approx(0.55)
    assert rates[12:] == pytest.approx([0.1, 0.1])


def test_append_response_tokens_keeps_masks_and_log_probs_in_line():
    sample = Sample(tokens=[1])
    sample.append_response_tokens(
        tokens=[5, 6], log_probs=[-1.0, -2.0], meta_info={"finish_reason": {"type": "length"}}
    )
    sample.append_response_tokens(tokens=[7], trainable=False)
    assert (sample.tokens, sample.loss_mask, sample.response_length) == ([1, 5, 6, 7], [1, 1, 0], 3)
    assert sample.rollout_log_probs == [-1.0, -2.0, 0.0]
    assert sample.status is Sample.Status.TRUNCATED
    with pytest.raises(ValueError, match="trainable"):
        sample.append_response_tokens(tokens=[7])


def test_the_endpoint_speaks_sglang_and_refuses_what_it_cannot_serve():
    async def play():
        server = RolloutServer(Engine(TinyLlama(ModelConfig(1, 16, 16, 2, 2, max_position_embeddings=20))))
        url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}"
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:

            async def ask(tokens, **params):
                return await client.post("/generate", json={"input_ids": tokens, "sampling_params": params})

            many = await asyncio.gather(*(ask([65, 66], max_new_tokens=3, sampling_seed=n) for n in range(20)))
            long = await ask([65] * 18, max_new_tokens=50, sampling_seed=1)
            full = await ask([65] * 30, max_new_tokens=5)
            refused = [await ask([300], max_new_tokens=1), await ask([], max_new_tokens=1), await ask([1], best_of=3)]
            health, nothing = await client.get("/health"), await client.get("/v1/models")
        await server.close()
        return [answer.json() for answer in many], long.json(), full.json(), refused, health, nothing

    many, long, full, refused, health, nothing = asyncio.run(play())
    for answer in many:
        meta = answer["meta_info"]
        assert all(len(row) == 3 and row[0] <= 0 and row[2] is None for row in meta["output_token_logprobs"])
        assert meta["finish_reason"]["type"] in ("stop", "length")
        assert meta["completion_tokens"] == len(meta["output_token_logprobs"]) <= 3
    assert len({answer["text"] for answer in many}) > 5
    assert long["meta_info"]["completion_tokens"] <= 2
    assert full["meta_info"]["finish_reason"]["type"] == "length"
    assert [answer.status_code for answer in refused] == [400, 400, 400]
    assert (health.status_code, nothing.status_code) == (200, 404)
