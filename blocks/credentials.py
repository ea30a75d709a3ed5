"""Credentials a person saves once in the Prefect UI and names in recipes.

A block's secret can be read by anyone who can call the Prefect API, so pods are never given that API's password.
"""

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from plugins.errors import UserError


class LiumCredentials(Block):
    """The key of a Lium account."""

    _block_type_name = "Lium credentials"
    _block_type_slug = "lium-credentials"

    api_key: SecretStr = Field(description="API key from the Lium dashboard; it needs the right to rent.")

    @classmethod
    def named(cls, name: str) -> "LiumCredentials":
        """Load a saved block; UserError when there is none of that name."""
        try:
            block = cls.load(name)
        except ValueError as error:
            raise UserError(
                f"No block 'lium-credentials/{name}': save it in the Prefect UI under Blocks, or leave "
                "lium.credentials_block out of the recipe and set LIUM_API_KEY."
            ) from error
        assert isinstance(block, cls)
        return block
