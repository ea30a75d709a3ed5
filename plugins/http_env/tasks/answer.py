"""Questions with one known answer: the reward is 1.0 for exactly that answer after normalisation, 0.0 otherwise.

Labels and answers may be in GSM8K's form, where the answer follows "####", or in <answer>...</answer>.
"""

import re
from decimal import Decimal

from plugins.errors import EnvError
from plugins.http_env.protocol import Problem, Turn
from plugins.http_env.tasks import Episode
from plugins.http_env.tasks.numbers import bare_number, find_sum, label_text, solve

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


def final_answer(text: str) -> str:
    """The part of a text that is its answer: after the last "####", in the last <answer> tags, or all of it."""
    if "####" in text:
        lines = text.rsplit("####", 1)[1].strip().splitlines()
        return lines[0] if lines else ""
    tagged = _TAGGED.findall(text)
    return tagged[-1] if tagged else text


def normalised(text: str) -> str | Decimal:
    """Numbers by value ("1,200.0" and "$1200" are equal); words without case, outer punctuation and double spaces."""
    value = bare_number(text)
    if value is not None:
        return value
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'")


class Answer:
    """Problems whose label is the answer. Without a label the prompt must hold a sum, which is then solved."""

    async def start(self, problem: Problem) -> tuple[Episode, Turn]:
        """Raises EnvError when there is neither a label nor a sum in the prompt: such a problem cannot be judged."""
        label = final_answer(label_text(problem.label)).strip()
        found = find_sum(problem.prompt)
        if not label and found is None:
            raise EnvError("an answer problem needs a label, or a prompt that holds a sum such as 3+4")
        return _Question(label or str(solve(*found or (0, "+", 0)))), Turn(info={"task": "answer"})


class _Question:
    def __init__(self, expected: str) -> None:
        self._expected = expected

    async def step(self, action: str) -> Turn:
        given = final_answer(action)
        right = normalised(given) == normalised(self._expected)
        reason = "exact" if right else f"{given.strip()[:80]!r} is not {self._expected[:80]!r}"
        return Turn("", True, float(right), {"reason": reason, "expected": self._expected})

    async def close(self) -> None:
        """Nothing is held."""
