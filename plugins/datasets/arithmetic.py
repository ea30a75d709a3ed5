"""Small sums as training data: RL prompts with labels, and chat rows for the SFT that comes before.

The chat rows are wrong or wordy on purpose in a known share of cases. A model trained on them has learnt to answer
with a number but often the wrong one, so that RL has something to raise; a clean set would leave a tiny model nothing
to learn. Everything follows from the seed: the same arguments give the same bytes.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from plugins.datasets.rows import Row, write_rows
from plugins.errors import UserError

_QUESTIONS = ("{a}+{b}=", "{a}+{b}=", "What is {a}+{b}?")
_WORDY = ("The answer is {c}.", "It is {c}.", "I think {c}.", "{a}+{b} is {c}.")


def prompts(out: Path, n: int, seed: int = 0, max_operand: int = 9) -> int:
    """Write `n` RL rows {"prompt": [user message], "label": "7", "metadata": {}}; returns n.

    Sums of two numbers from 0 to `max_operand`; no sum and wording comes twice before all came once.
    Raises UserError for n < 1, max_operand < 1 or a file that cannot be written.
    """
    _check(n, max_operand)
    return write_rows(out, _prompt_rows(n, random.Random(f"prompts {seed}"), max_operand))  # noqa: S311 - data, not secrets


def chats(
    out: Path, n: int, seed: int = 0, max_operand: int = 9, *, wrong_share: float = 0.35, wordy_share: float = 0.25
) -> int:
    """Write `n` SFT rows {"messages": [user, assistant]}; returns n.

    `wrong_share` of the answers are off by one to three and `wordy_share` are a sentence in place of the bare number,
    drawn independently. Raises UserError as `prompts` does, and for a share outside 0 to 1.
    """
    _check(n, max_operand)
    for name, share in (("wrong_share", wrong_share), ("wordy_share", wordy_share)):
        if not 0 <= share <= 1:
            raise UserError(f"{name} must be from 0 to 1, not {share}")
    rng = random.Random(f"chats {seed}")  # noqa: S311
    return write_rows(out, _chat_rows(n, rng, max_operand, wrong_share, wordy_share))


def _check(n: int, max_operand: int) -> None:
    if n < 1:
        raise UserError(f"the number of rows must be at least 1, not {n}")
    if not 1 <= max_operand <= 999:
        raise UserError(f"max_operand must be from 1 to 999, not {max_operand}")


def _prompt_rows(n: int, rng: random.Random, max_operand: int) -> Iterator[Row]:
    for a, b, question in _problems(n, rng, max_operand):
        yield {"prompt": [_message("user", question)], "label": str(a + b), "metadata": {}}


def _chat_rows(n: int, rng: random.Random, max_operand: int, wrong: float, wordy: float) -> Iterator[Row]:
    for a, b, question in _problems(n, rng, max_operand):
        c = _near(a + b, rng) if rng.random() < wrong else a + b
        answer = rng.choice(_WORDY).format(a=a, b=b, c=c) if rng.random() < wordy else str(c)
        yield {"messages": [_message("user", question), _message("assistant", answer)]}


def _problems(n: int, rng: random.Random, max_operand: int) -> Iterator[tuple[int, int, str]]:
    """Every sum once in random order, wordings drawn per sum, then all again, until `n` are out."""
    pairs = [(a, b) for a in range(max_operand + 1) for b in range(max_operand + 1)]
    for index in range(n):
        if index % len(pairs) == 0:
            rng.shuffle(pairs)
        a, b = pairs[index % len(pairs)]
        yield a, b, rng.choice(_QUESTIONS).format(a=a, b=b)


def _near(number: int, rng: random.Random) -> int:
    return rng.choice([other for step in (1, 2, 3) for other in (number - step, number + step) if other >= 0])


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
