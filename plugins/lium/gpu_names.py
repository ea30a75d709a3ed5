"""Whether two names mean the same GPU: the one a person writes and the full one that a driver gives.

The rule is that of Lium's short names (`extract_gpu_type` and `gpu_short_matches` in lium.io 0.32, sdk/utils.py), but a
variant is another GPU: who asks for an RTX 4090 has not asked for a 4090 D, and a GH200 is no H200.
"""

import re

_BRANDS = frozenset({"NVIDIA", "GEFORCE", "TESLA", "QUADRO"})
_MODEL = re.compile(
    r"(?<![A-Z0-9])(?:(?P<line>RTX ?PRO|RTX|GTX|PRO) ?)?(?P<number>[A-Z]{0,2}\d{1,4}[A-Z]?)"
    r"(?: ?(?P<variant>TI SUPER|TI|SUPER|D|LAPTOP))?(?![A-Z0-9])"
)
_PRO_LAST = re.compile(r"\b(?:RTX ?)?(\d{4}D?) ?PRO\b")


def same_gpu(asked: str, full_name: str) -> bool:
    """Whether `asked` ("H200", "RTX4090", "4090", "A100 80GB", "NVIDIA H200") names the GPU `full_name`.

    A number alone names every GPU with that number ("100": H100 and A100), as in the SDK. Further words of `asked`
    must stand in the full name too.
    """
    wanted, have = _words(asked), _words(full_name)
    if not wanted:
        return False
    if "".join(wanted) == "".join(have):
        return True
    wanted_text, have_text = " ".join(wanted), " ".join(have)
    one, other = _MODEL.search(wanted_text), _MODEL.search(have_text)
    if one is None or other is None or not _same_model(one, other):
        return False
    rest = (wanted_text[: one.start()] + wanted_text[one.end() :]).split()
    return set(rest) <= set(have)


def _words(name: str) -> list[str]:
    words = [word for word in re.split(r"[\s_-]+", name.upper()) if word and word not in _BRANDS]
    return _PRO_LAST.sub(r"RTX PRO \1", " ".join(words)).split()


def _same_model(asked: re.Match[str], found: re.Match[str]) -> bool:
    number, have = _number(asked), _number(found)
    if number.isdigit() and asked["line"] is None:
        return have.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ") == number
    return number == have and (asked["line"] is None or _line(asked) == _line(found))


def _number(model: re.Match[str]) -> str:
    return model["number"] + (model["variant"] or "").replace(" ", "")


def _line(model: re.Match[str]) -> str:
    line = (model["line"] or "").replace(" ", "")
    return "RTXPRO" if line == "PRO" else line
