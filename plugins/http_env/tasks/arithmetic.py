"""Sums: the smallest environment that can be learnt. The prompt holds the sum, the model's text is the answer.

The reward climbs in small steps, so that a model that cannot answer yet still feels the way:

    nothing numeric 0  <  words with a number  <  a bare wrong number 0.1 .. 0.3, the closer the more  <  words with the
    right number 0.4 .. 0.5  <  the bare right number 1.0
"""

import random
from decimal import Decimal

from plugins.errors import EnvError
from plugins.http_env.protocol import Problem, Turn
from plugins.http_env.tasks import Episode
from plugins.http_env.tasks.numbers import bare_number, find_sum, label_text, last_number, solve


def judge(action: str, expected: Decimal) -> tuple[float, str]:
    """Reward from 0 to 1 and the reason for it."""
    bare = bare_number(action)
    if bare is not None:
        if bare == expected:
            return 1.0, "exact"
        closeness = max(Decimal(0), 1 - abs(bare - expected) / (abs(expected) + 1))
        return round(0.1 + 0.2 * float(closeness), 4), f"a number, but {_short(bare)} is not {expected}"
    last = last_number(action)
    if last is None:
        return 0.0, "no number in the answer"
    digits = sum(character.isdigit() for character in action) / len(action.strip())
    if last == expected:
        return round(0.4 + 0.1 * digits, 4), "right, but not the bare number"
    return round(0.1 * digits, 4), f"not the bare number, and {_short(last)} is not {expected}"


class Arithmetic:
    """Problems with a number for a label. `metadata.attempts` (default 1) allows more tries, with feedback between
    them.

    Without a label the sum in the prompt is solved; without a sum in the prompt one is made from it, always the same
    for the same prompt, and posed as the first observation.
    """

    async def start(self, problem: Problem) -> tuple[Episode, Turn]:
        """Raises EnvError for a label that is no number and `attempts` that is no whole number above 0."""
        attempts = problem.metadata.get("attempts", 1)
        if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
            raise EnvError(f"metadata.attempts must be a whole number from 1 on, not {attempts!r}")
        expected, observation = _pose(problem)
        return _Sums(expected, attempts), Turn(observation, info={"task": "arithmetic"})


class _Sums:
    def __init__(self, expected: Decimal, attempts: int) -> None:
        self._expected = expected
        self._left = attempts

    async def step(self, action: str) -> Turn:
        reward, reason = judge(action, self._expected)
        self._left -= 1
        info = {"reason": reason, "expected": str(self._expected)}
        if reward == 1.0 or not self._left:
            return Turn("", True, reward, info)
        return Turn(f"Wrong. Tries left: {self._left}.", False, reward, info)

    async def close(self) -> None:
        """Nothing is held."""


def _pose(problem: Problem) -> tuple[Decimal, str]:
    """Expected number, and what to tell the model besides the prompt."""
    label = label_text(problem.label)
    if label:
        expected = bare_number(label)
        if expected is None:
            raise EnvError(f"the label of an arithmetic problem must be a number, not {label[:80]!r}")
        return expected, ""
    found = find_sum(problem.prompt)
    if found is not None:
        return Decimal(solve(*found)), ""
    rng = random.Random(problem.prompt)  # noqa: S311 - a problem, not a secret
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    return Decimal(a + b), f"{a}+{b}="


def _short(value: Decimal) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"{text[:20]}..."
