"""The version of pyproject.toml, which a checkout that runs has not installed."""

from typing import Final

VERSION: Final = "0.1.0"
