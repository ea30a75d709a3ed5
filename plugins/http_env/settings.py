"""What a user may set for the adapter. Each value comes from args.http_env_<name> (slime: --custom-config-path), else
from the environment variable TRAINSTACK_ENV_<NAME>, else from the default here. The older stack's variable names are
read too.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from plugins.errors import UserError

_OLDER = {
    "url": "TRAINSTACK_HTTP_ENV_URL",
    "llm_url": "TRAINSTACK_LLM_URL",
    "max_turns": "TRAINSTACK_HTTP_ENV_MAX_TURNS",
}


@dataclass(frozen=True)
class Settings:
    """Addresses and limits of one adapter; times in seconds."""

    url: str = "http://127.0.0.1:18080"
    llm_url: str = ""  # empty: /generate of slime's router
    max_turns: int = 8  # model turns in one sample
    call_s: float = 60.0  # one try of one call to the environment
    patience_s: float = 20.0  # how long a failing environment call is tried again
    generate_s: float = 1800.0  # one generation
    generate_patience_s: float = 60.0  # how long an unreachable model server is asked again
    sample_s: float = 3600.0  # one sample, all turns
    abort_grace_s: float = 10.0  # for the model server to hand over the partial text after an abort
    give_up_s: float = 900.0  # with no good sample for so long ...
    give_up_samples: int = 64  # ... and so many failed in a row, the job fails: it would train on nothing

    @classmethod
    def read(cls, args: Any, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Raises UserError naming the setting whose value is no number or not above 0."""
        values: dict[str, Any] = {}
        for name, kind in ((field.name, type(field.default)) for field in fields(cls)):
            given = getattr(args, f"http_env_{name}", None)
            source = f"args.http_env_{name}"
            for variable in (f"TRAINSTACK_ENV_{name.upper()}", _OLDER.get(name, "")):
                if given is None and environ.get(variable):
                    given, source = environ[variable], variable
            if given is not None:
                values[name] = _parse(given, kind, source)
        return cls(**values)


def _parse(given: Any, kind: type, source: str) -> Any:
    try:
        value = kind(given)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: must be of type {kind.__name__}, not {given!r}") from error
    if kind is not str and not value > 0:
        raise UserError(f"{source}: must be more than 0, not {given!r}")
    return value
