"""The SSH key whose public half Lium gets and whose private half opens the pods. The key is read and never shown."""

from pathlib import Path

from plugins.errors import UserError
from tasks.lium_account import own_ssh_key
from tasks.prerequisites.finding import Finding

WHAT = "SSH key pair"


def look() -> list[Finding]:
    """The pair: there, readable by its owner alone, without a passphrase, and one pair indeed."""
    try:
        path = own_ssh_key()
    except UserError as error:
        return [Finding(WHAT, False, "none", str(error), needed_for="renting")]
    wrong = _wrong_with(path)
    if wrong is None:
        return [Finding(WHAT, True, str(path), needed_for="renting")]
    return [Finding(WHAT, False, f"{path}: {wrong[0]}", wrong[1], needed_for="renting")]


def _wrong_with(path: Path) -> tuple[str, str] | None:
    import asyncssh

    public = path.with_name(path.name + ".pub")
    if mode := path.stat().st_mode & 0o077:
        return f"others may use it (mode bits {mode:03o})", f"chmod 600 {path}"
    try:
        key = asyncssh.read_private_key(str(path))
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        if "assphrase" in str(error):
            return _encrypted(path)
        return "is not a private key that can be read", "make a pair with ssh-keygen -t ed25519"
    try:
        matches = asyncssh.read_public_key(str(public)).public_data == key.public_data
    except asyncssh.KeyImportError:
        matches = False
    return None if matches else (f"{public.name} is not its public half", f"ssh-keygen -y -f {path} > {public}")


def _encrypted(path: Path) -> tuple[str, str]:
    """The flow must open its link to a pod by itself, hours later too, so no agent is asked."""
    return "has a passphrase, which nobody can type for a flow", (
        f"make a key for pods alone (ssh-keygen -t ed25519 -N '' -f ~/.ssh/lium) and set LIUM_SSH_KEY_PATH to it, or "
        f"take the passphrase off: ssh-keygen -p -f {path}"
    )
