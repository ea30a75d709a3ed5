"""What a rent refers to by id and a recipe by name: the volume and the template of an image.

Both are made on the account when they are missing, and found again by name when a rent is tried a second time, so
that a lost answer or a lack of machines leaves no second volume and no heap of templates.
"""

from collections.abc import Callable
from typing import Any

from plugins.errors import UserError

Ask = Callable[[str, Callable[[], Any]], Any]


def volume_id(lium: Any, ask: Ask, wanted: str) -> str:
    """Return the id of the volume `new:name=x[,desc=y]` (made unless it exists), `id:<id or huid>`, or a plain name."""
    volumes = ask("list volumes", lium.volumes)
    if wanted.startswith("new:"):
        options = dict(part.partition("=")[::2] for part in wanted.removeprefix("new:").split(","))
        name = options.get("name", "")
        if not name or set(options) - {"name", "desc"}:
            raise UserError(f"volume {wanted!r}: write new:name=NAME or new:name=NAME,desc=TEXT")
        found = [volume for volume in volumes if volume.name == name]
        if found:
            return str(found[0].id)
        made = ask(f"make volume {name}", lambda: lium.volume_create(name, description=options.get("desc", "")))
        return str(made.id)
    key = wanted.removeprefix("id:")
    found = [volume for volume in volumes if key in (volume.id, volume.huid, None if key != wanted else volume.name)]
    if len(found) == 1:
        return str(found[0].id)
    names = ", ".join(sorted(volume.name for volume in volumes)) or "none"
    what = "several volumes are" if found else "no volume is"
    raise UserError(f"{what} called {key!r}: the account has {names}; new:name={key} makes one")


def template_for_image(lium: Any, ask: Ask, pod_name: str, image: str) -> str:
    """Return a one-time template (Lium deletes it with the pod) that runs `image`, named after the pod."""
    for template in ask("list templates", lambda: lium.templates(only_my=True)):
        if template.name == pod_name:
            return str(template.id)
    made = ask(
        f"make a template for image {image}",
        lambda: lium.create_template(
            name=pod_name,
            docker_image=image,
            docker_image_tag="",  # the server splits name, tag and digest
            ports=[22],
            is_private=True,
            one_time_template=True,
        ),
    )
    return str(made.id)
