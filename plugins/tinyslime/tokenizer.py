"""A byte-level tokenizer: one token for each of the 256 bytes, and three special ones, so no vocabulary has to be
trained.

`tokenizer_files` writes the same tokenizer as the JSON that `transformers` reads (a byte-level BPE with no merges),
by hand, so that running needs no `tokenizers` package. The chat template is ChatML, as Qwen's, without a default
system message.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from plugins.errors import UserError

END_OF_TEXT, IM_START, IM_END = 256, 257, 258
SPECIALS = {"<|endoftext|>": END_OF_TEXT, "<|im_start|>": IM_START, "<|im_end|>": IM_END}
VOCAB_SIZE = 256 + len(SPECIALS)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_NAMES = {number: name for name, number in SPECIALS.items()}
_SPLIT = re.compile("(" + "|".join(re.escape(name) for name in SPECIALS) + ")")


class ByteTokenizer:
    """What trainers and environment adapters ask of a tokenizer, under the names that `transformers` uses."""

    vocab_size = VOCAB_SIZE
    eos_token_id = IM_END
    pad_token_id = END_OF_TEXT
    stop_token_ids = (IM_END, END_OF_TEXT)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Tokens of a text; the names of special tokens in it become these tokens. Nothing is ever added."""
        tokens: list[int] = []
        for part in _SPLIT.split(text):
            tokens.extend([SPECIALS[part]] if part in SPECIALS else part.encode())
        return tokens

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of tokens; bytes that are no UTF-8 become the replacement character."""
        out = bytearray()
        for number in ids:
            if number < 256:
                out.append(number)
            elif not skip_special_tokens:
                out.extend(_NAMES.get(number, "").encode())
        return out.decode(errors="replace")

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        """The calling form of `transformers`, for adapters written for it."""
        return {"input_ids": self.encode(text)}

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, Any]],
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        **_: object,
    ) -> Any:
        """ChatML text of messages (`role`, `content`), or its tokens with `tokenize`."""
        text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        text += "<|im_start|>assistant\n" if add_generation_prompt else ""
        return self.encode(text) if tokenize else text


def chat_tokens(tokenizer: ByteTokenizer, messages: Sequence[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Tokens and loss mask (1 = trained) of a conversation: what the assistant says and the `<|im_end|>` that ends it.

    A message with `step_loss_mask` other than 1 is not trained, as in slime. Raises UserError for a message without
    text.
    """
    tokens: list[int] = []
    mask: list[int] = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise UserError(f"a message needs the texts `role` and `content`, this one is {str(message)[:80]}")
        head = tokenizer.encode(f"<|im_start|>{role}\n")
        body = [*tokenizer.encode(content), IM_END]
        trained = int(role == "assistant" and content != "" and message.get("step_loss_mask", 1) == 1)
        tokens += [*head, *body, ord("\n")]
        mask += [*([0] * len(head)), *([trained] * len(body)), 0]
    return tokens, mask


def tokenizer_files() -> dict[str, Any]:
    """The three JSON files of a Hugging Face folder that describe this tokenizer, by file name."""
    added = [
        {
            "id": number,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for name, number in SPECIALS.items()
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    vocab = {character: number for number, character in enumerate(_byte_characters())}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False}
        | {"vocab": vocab | SPECIALS, "merges": []},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 1 << 20,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(entry["id"]): {k: v for k, v in entry.items() if k != "id"} for entry in added},
        "chat_template": CHAT_TEMPLATE,
    }
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": config, "special_tokens_map.json": special}


def _byte_characters() -> list[str]:
    """The printable stand-in of each byte in byte-level BPE files: printable Latin-1 stays, the others follow from
    U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(rest)) for byte in range(256)]
