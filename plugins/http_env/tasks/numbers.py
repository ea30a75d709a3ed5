"""Reading numbers and small sums out of text, as the tasks that judge numbers need it."""

import re
from decimal import Decimal
from typing import Any

NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?|[-+]?\.\d+")
_BARE = re.compile(r"[$]?\s*(" + NUMBER.pattern + r")\s*[.%]?")
_SUM = re.compile(r"(-?\d{1,9})\s*([-+*x×−])\s*(-?\d{1,9})")


def number(text: str) -> Decimal:
    """The value of a text that NUMBER matched; thousands commas are allowed."""
    return Decimal(text.replace(",", ""))


def bare_number(text: str) -> Decimal | None:
    """The number if the text is nothing else ("7", " 1,200. ", "$5"), None otherwise."""
    match = _BARE.fullmatch(text.strip())
    return number(match[1]) if match else None


def last_number(text: str) -> Decimal | None:
    """The last number in a text, None when there is none."""
    found = NUMBER.findall(text)
    return number(found[-1]) if found else None


def find_sum(text: str) -> tuple[int, str, int] | None:
    """The last sum in a text, such as "3+4=" or "What is 12 * 5?": operands and one of + - *. None when there is
    none.
    """
    found = _SUM.findall(text)
    if not found:
        return None
    a, sign, b = found[-1]
    return int(a), {"x": "*", "×": "*", "−": "-"}.get(sign, sign), int(b)


def solve(a: int, sign: str, b: int) -> int:
    """The value of a sum that `find_sum` found."""
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


def label_text(label: Any) -> str:
    """The answer a label holds: text, a number, or an object with `answer` or `ground_truth`; "" when there is none."""
    if isinstance(label, dict):
        label = label.get("answer", label.get("ground_truth"))
    return "" if label is None else str(label).strip()
