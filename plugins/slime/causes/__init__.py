"""What trainers are known to die of: the words that show it, and what to change.

Each pattern is matched from the first character of a line on, after Ray's, torch's and the logger's prefixes are taken
off. Where a wording comes from stands beside it: slime v0.3.1, Megatron-LM 1dcf0daf (M:), Ray 2.60, torch 2.13,
transformers, huggingface_hub, SGLang 0.5; `qa.md` is slime's docs/en/get_started/qa.md. Finding out which of them a log
shows is `diagnose.py`'s matter.
"""

from plugins.slime.causes.cause import Cause, Mend
from plugins.slime.causes.follows import FOLLOWS
from plugins.slime.causes.machine import MACHINE, MEMORY
from plugins.slime.causes.recipe import RECIPE

CAUSES = (*MACHINE, *MEMORY, *RECIPE, *FOLLOWS)
"""In the order in which they are asked: what is particular before what is general."""

__all__ = ["CAUSES", "Cause", "Mend"]
