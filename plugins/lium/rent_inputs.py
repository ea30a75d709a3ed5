"""What a rent refers to by id and a recipe by name: the volume, and the template of an image.

Both are found by name on the account, or made. A second run, a second try and a lost answer find what the first one
made, so the account gets no second volume and no heap of templates. Renting with the ids is `client.py`'s.
"""

import hashlib
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from plugins.errors import ControlPlaneError, UserError

Ask = Callable[[str, Callable[[], Any]], Any]
"""Calls the SDK with its errors converted: `ask("list volumes", lium.volumes)`."""

TEMPLATE_TIMEOUT_S = 1800.0
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 10.0
USABLE = ("VERIFY_SUCCESS", "CREATED", "UPDATED")  # the SDK's `wait_template_ready`, lium.io 0.32.0
FAILED = "VERIFY_FAILED"
NAME_LENGTH = 24

# The grammar of github.com/distribution/reference, without its rarer digest algorithms.
_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?P<repository>(?:[A-Za-z0-9][A-Za-z0-9.-]*(?::\d+)?/)?{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)


# -- templates --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageReference:
    """`repository[:tag][@digest]`. Without tag and digest, `latest` is meant, as for `docker pull`."""

    repository: str
    tag: str
    digest: str

    @property
    def full(self) -> str:
        """The reference with nothing left to be guessed."""
        return self.repository + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def template_name(self) -> str:
        """Name of the template that runs it: the same for every run, another for every other reference."""
        short = re.sub(r"[^a-z0-9]+", "-", self.repository.rpartition("/")[2])[:NAME_LENGTH].strip("-")
        return f"ts-{hashlib.sha256(self.full.encode()).hexdigest()[:12]}-{short}"


def image_reference(image: str) -> ImageReference:
    """Read an image's name. Raises UserError for one that no registry could have."""
    match = _IMAGE.fullmatch(image)
    if match is None:
        raise UserError(
            f"image {image!r} is not the name of an image: write repository:tag or repository@sha256:<64 hex digits>, "
            "in lower case"
        )
    digest = match["digest"] or ""
    return ImageReference(match["repository"], match["tag"] or ("" if digest else "latest"), digest)


def template_for_image(
    lium: Any,
    ask: Ask,
    image: str,
    *,
    timeout_s: float = TEMPLATE_TIMEOUT_S,
    sleep: Callable[[float], None] = time.sleep,
    note: Callable[[str], None] | None = None,
) -> str:
    """Return the id of the account's private template for `image`, found by its name or made, once Lium verified it.

    Waits `timeout_s` seconds of pauses at most; `note` is told what is waited for. Raises UserError for a name that is
    no image's and for an image that Lium could not verify, ControlPlaneError when the time is over.
    """
    wanted = image_reference(image)
    tell = note or (lambda _: None)
    if not wanted.digest and wanted.full != image:
        tell(f"image {image} has neither tag nor digest: {wanted.full} is taken")
    found = _oldest_named(lium, ask, wanted.template_name)
    if found is None:
        tell(f"make template {wanted.template_name} for image {wanted.full}")
        made = ask(f"make a template for image {wanted.full}", lambda: _make(lium, wanted))
        found = _oldest_named(lium, ask, wanted.template_name) or made  # another run may have made one a moment before
    return _wait_verified(lium, ask, wanted, found, timeout_s, sleep, tell)


def known_template(lium: Any, ask: Ask, image: str) -> str | None:
    """Id of the template that a rent of this image would use, if the account has it already. Makes nothing."""
    found = _oldest_named(lium, ask, image_reference(image).template_name)
    return None if found is None else str(found.id)


def _make(lium: Any, wanted: ImageReference) -> Any:
    return lium.create_template(
        name=wanted.template_name,
        docker_image=wanted.repository,
        docker_image_tag=wanted.tag,
        docker_image_digest=wanted.digest,
        ports=[22],
        is_private=True,
        one_time_template=False,
        description=f"trainstack: {wanted.full}",
    )


def _wait_verified(
    lium: Any,
    ask: Ask,
    wanted: ImageReference,
    template: Any,
    timeout_s: float,
    sleep: Callable[[float], None],
    tell: Callable[[str], None],
) -> str:
    waited_s, pause_s, told = 0.0, FIRST_PAUSE_S, ""
    while True:
        status = str(template.status).upper()
        if status in USABLE:
            return str(template.id)
        if status == FAILED:
            raise UserError(
                f"Lium could not verify image {wanted.full} (template {wanted.template_name} is {FAILED}): is it in "
                "the registry and public? Then push it under another tag or name it by digest, which makes a new "
                "template, or delete this one in the Lium dashboard and start again"
            )
        if waited_s >= timeout_s:
            raise ControlPlaneError(
                f"template {wanted.template_name} for image {wanted.full} is still {status} after {waited_s:.0f} s; "
                "starting again goes on waiting for the same template"
            )
        if status != told:
            tell(f"template {wanted.template_name} for image {wanted.full} is {status}: waiting for Lium's check")
            told = status
        pause_s = min(pause_s, timeout_s - waited_s)
        sleep(pause_s)
        waited_s, pause_s = waited_s + pause_s, min(pause_s * 2, LONGEST_PAUSE_S)
        template = _oldest_named(lium, ask, wanted.template_name) or template


def _oldest_named(lium: Any, ask: Ask, name: str) -> Any | None:
    """The account's own template of that name. Of several, every run must take the same: a sound one, the oldest."""
    named = [item for item in ask("list templates", lambda: lium.templates(only_my=True)) if item.name == name]
    if len(named) < 2:
        return named[0] if named else None
    rows = ask("list templates", lambda: lium._request("GET", "/templates").json())  # the SDK's models have no times
    made_at = {str(row.get("id")): str(row.get("created_at") or "~") for row in rows}
    return min(named, key=lambda item: (str(item.status).upper() == FAILED, made_at.get(item.id, "~"), item.id))


# -- volumes ----------------------------------------------------------------------------------------------------------


def volume_id(lium: Any, ask: Ask, wanted: str) -> str:
    """Return the id of the volume `new:name=x[,desc=y]` (made unless it exists), `id:<id or huid>`, or a plain name.

    Raises UserError for a volume that the account does not have, and for a name that several have.
    """
    volumes = ask("list volumes", lium.volumes)
    if wanted.startswith("new:"):
        options = dict(part.partition("=")[::2] for part in wanted.removeprefix("new:").split(","))
        name = options.get("name", "")
        if not name or set(options) - {"name", "desc"}:
            raise UserError(f"volume {wanted!r}: write new:name=NAME or new:name=NAME,desc=TEXT")
        if not any(volume.name == name for volume in volumes):
            made = ask(f"make volume {name}", lambda: lium.volume_create(name, description=options.get("desc", "")))
            volumes = ask("list volumes", lium.volumes)  # another run may have made one at the same moment
            if not any(volume.name == name for volume in volumes):
                return str(made.id)
        return _only(name, [volume for volume in volumes if volume.name == name])
    key = wanted.removeprefix("id:")
    found = [volume for volume in volumes if key in (volume.id, volume.huid, None if key != wanted else volume.name)]
    if not found:
        names = ", ".join(sorted(volume.name for volume in volumes)) or "none"
        raise UserError(f"no volume is called {key!r}: the account has {names}; new:name={key} makes one")
    return _only(key, found)


def _only(key: str, found: list[Any]) -> str:
    if len(found) > 1:
        ids = ", ".join(sorted(f"id:{volume.id}" for volume in found))
        raise UserError(f"several volumes are called {key!r}: name one of them as {ids}")
    return str(found[0].id)


def volume_holder(lium: Any, ask: Ask, volume_id: str) -> str | None:
    """Name of the pod that has the volume; None when no pod has it or the listing does not say."""
    rows = ask("list pods", lambda: lium._request("GET", "/pods").json())  # the SDK's models drop the field
    holders = [str(row.get("pod_name") or row.get("id")) for row in rows if row.get("volume_id") == volume_id]
    return min(holders, default=None)


def refuse_held_volume(lium: Any, ask: Ask, volume_id: str, wanted: str, own_names: Collection[str] = ()) -> None:
    """Raise UserError when a pod holds the volume whose name is none of `own_names`; `wanted` is the recipe's word.

    Where the listing does not say who holds a volume, nothing is refused here: the rent itself is.
    """
    holder = volume_holder(lium, ask, volume_id)
    if holder is not None and holder not in own_names:
        called = wanted.removeprefix("new:").removeprefix("name=").partition(",")[0]
        raise UserError(
            f"volume {called} is held by pod {holder}; a volume serves one pod at a time: wait, stop that pod, or use "
            "another volume (pod.volume of the recipe)"
        )
