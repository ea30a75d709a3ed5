"""Build the image of a pod from this checkout and push it, unless the registry has it already.

The tag follows from what the image is made of, so whoever has the same files gets the same name, and a second call
finds the first one's image. The recipe should name it by digest (`pinned`): a tag can be moved, a digest cannot.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plugins.errors import UserError
from plugins.images.context import ROOT, Context, context, default_arguments
from plugins.images.engine import Engine
from plugins.lium.rent_inputs import image_reference


@dataclass(frozen=True)
class ImageReference:
    """name: `repository:tag`; digest: the registry's `sha256:...`, '' for an image that was not pushed."""

    name: str
    digest: str

    @property
    def pinned(self) -> str:
        """What `pod.image` of a recipe should say."""
        return f"{self.name.rpartition(':')[0]}@{self.digest}" if self.digest else self.name


def build_image(
    repository: str,
    tag: str | None = None,
    push: bool = True,
    base: str | None = None,
    log: Callable[[str], None] = print,
    root: Path = ROOT,
) -> ImageReference:
    """Build deployments/image/Dockerfile and push it to `repository`.

    tag: default is the digest of the context and the build arguments; an image that the registry has under that one
    is not built again. base: instead of the Dockerfile's own. log: gets the steps and the progress, a line at a time.
    root: the checkout.

    UserError: a name that is none, no engine, no right to push, a step that fails. ControlPlaneError: the engine, the
    network or the registry failed; trying again goes on from the layers that are there.
    """
    chosen = {"BASE": image_reference(base).full} if base else {}
    _name(repository, tag or "any")
    made_of = context(root, default_arguments(root) | chosen)
    name = _name(repository, tag or made_of.tag)
    _tell_left_out(made_of, log)
    with Engine(log) as engine:
        if push and tag is None and (there := engine.digest_in_registry(name)):
            log(f"{name} is in the registry already: nothing to build")
            return ImageReference(name, there)
        log(f"build {name} on {made_of.arguments['BASE']}: {len(made_of.archive) / 1e6:.1f} MB of our own files")
        image_id = engine.build(made_of, name)
        log(f"built {name} ({image_id})")
        if not push:
            return ImageReference(name, "")
        log(f"push {name}")
        return ImageReference(name, engine.push(name))


def _name(repository: str, tag: str) -> str:
    if image_reference(repository).full != f"{repository}:latest":
        raise UserError(f"{repository!r} names more than a repository: give the tag as --tag, and no digest")
    return image_reference(f"{repository}:{tag}").full


def _tell_left_out(made_of: Context, log: Callable[[str], None]) -> None:
    if code := [name for name in made_of.untracked if name.endswith((".py", ".sh", ".tsv"))]:
        log(f"WARNING not in git, so not in the image: {', '.join(code[:8])}{' ...' if len(code) > 8 else ''}")
