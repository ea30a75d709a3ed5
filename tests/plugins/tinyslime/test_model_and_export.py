from dataclasses import replace

import pytest
import torch

from plugins.errors import UserError
from plugins.tinyslime import export, flags
from plugins.tinyslime.config import ModelConfig
from plugins.tinyslime.inference import Engine, Request
from plugins.tinyslime.model import TinyLlama
from plugins.tinyslime.tokenizer import ByteTokenizer

MESSAGES = [
    {"role": "system", "content": "Be\nkurz. äöü 😀"},
    {"role": "user", "content": " 3+4=  "},
    {"role": "assistant", "content": "7<b>'s don't"},
]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied and grouped"])
def model(request):
    torch.manual_seed(1)
    groups = 4 if request.param else 2
    return TinyLlama(
        ModelConfig(2, 64, 96, 4, groups, max_position_embeddings=128, norm_epsilon=1e-6, tie=request.param)
    )


def test_transformers_loads_the_export_and_computes_the_same_logits(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    export.write_folder(model, tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    ids = torch.randint(0, 259, (2, 50))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model.logits(model.hidden(ids)), atol=2e-5, rtol=1e-4)
    assert theirs.config.model_type == "llama"
    assert theirs.generation_config.eos_token_id == [258, 256]


def test_transformers_tokenizes_as_we_do(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    export.write_folder(model, tmp_path / "hf")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf"), ByteTokenizer()
    text = ours.apply_chat_template(MESSAGES, add_generation_prompt=True)
    assert theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True) == text
    assert theirs.encode(text) == ours.encode(text)
    every_byte = [*range(256), 256, 257, 258]
    assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text)) == text
    assert theirs.decode(every_byte) == ours.decode(every_byte)
    assert theirs.eos_token_id == ours.eos_token_id


def test_an_export_reads_back_to_the_same_bits_and_a_wrong_one_is_refused(model, tmp_path):
    export.write_folder(model, tmp_path / "hf")
    again = TinyLlama(model.config)
    export.read_weights(again, tmp_path / "hf")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    other = TinyLlama(replace(model.config, ffn_hidden_size=32))
    with pytest.raises(UserError, match=r"mlp\.gate_proj\.weight is \[96, 64\], not \[32, 64\]"):
        export.read_weights(other, tmp_path / "hf")
    line = "--prompt-data x --rollout-batch-size 1 --num-rollout 1 --rollout-max-response-len 1 --num-layers 5"
    args = flags.parse(line.split())
    with pytest.raises(UserError, match=r"--num-layers 5 \(folder: 2\)"):
        ModelConfig.from_args(args, export.read_config(tmp_path / "hf"))


def _ask(prompt, seed, **more):
    return Request(list(prompt), max_new_tokens=8, seed=seed, stop_token_ids=frozenset({258}), **more)


def test_what_a_request_gets_does_not_depend_on_who_shares_its_batch(model):
    engine = Engine(model)
    asked = [
        (bytes([65 + n]) * (1 + n % 7), n, {"top_p": 1.0 if n % 2 else 0.8, "top_k": -1 if n % 3 else 5})
        for n in range(40)
    ]
    together = [_ask(prompt, seed, **more) for prompt, seed, more in asked]
    engine.generate(together)
    for (prompt, seed, more), got in list(zip(asked, together, strict=True))[::5]:
        alone = _ask(prompt, seed, **more)
        engine.generate([alone])
        assert (alone.output, alone.log_probs) == (got.output, got.log_probs)
    backwards = [_ask(prompt, seed, **more) for prompt, seed, more in asked[:17:-1]]
    engine.generate(backwards)
    assert [r.output for r in backwards] == [r.output for r in together[:17:-1]]


def test_reported_log_probs_are_those_of_the_trained_model(model):
    request = _ask(b"3+4=", 5, temperature=0.7)
    Engine(model).generate([request])
    row = torch.tensor([request.prompt + request.output])
    with torch.no_grad():
        said = (model.logits(model.hidden(row))[0] / 0.7).log_softmax(-1)
    at = range(len(request.prompt) - 1, row.shape[1] - 1)
    wanted = [said[place, row[0, place + 1]].item() for place in at]
    assert request.log_probs == pytest.approx(wanted, abs=1e-4)


def test_sampling_follows_the_distribution():
    torch.manual_seed(0)
    small = TinyLlama(ModelConfig(1, 16, 16, 2, 2, max_position_embeddings=16))
    requests = [Request([65], max_new_tokens=1, seed=seed) for seed in range(4000)]
    with torch.no_grad():
        small.lm_head.weight[:] = 0
        small.lm_head.weight[7] = 50 * small.hidden(torch.tensor([[65]]))[0, 0].sign() / 16
        probability = small.logits(small.hidden(torch.tensor([[65]])))[0, 0].softmax(-1)[7].item()
    Engine(small).generate(requests)
    share = sum(request.output == [7] for request in requests) / len(requests)
    assert share == pytest.approx(probability, abs=0.03)
