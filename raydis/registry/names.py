"""Names of models, versions and aliases, and the keys of a registry's files in its store."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from raydis.checkpoint.manifest import MANIFEST
from raydis.errors import RegistryError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ModelRef:
    """One version of one model, and the prefix of its files in the registry's store."""

    name: str
    version: int

    @property
    def prefix(self) -> str:
        """The prefix of the version's files in the store."""
        return f"registry/{self.name}/versions/{self.version}"

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def promote_command(ref: ModelRef, alias: str, storage: str) -> str:
    """Return the command that points an alias to a version in the registry of a storage, whatever their scores."""
    return f"python -m raydis models promote {ref} --alias {alias} --storage {shlex.quote(storage)}"


def alias_key(name: str, alias: str) -> str:
    """Return the key of an alias. Raises RegistryError if one of the names is not allowed."""
    return f"registry/{check_word(name, 'model name')}/aliases/{check_word(alias, 'alias')}.json"


def numbers_key(name: str) -> str:
    """Return the key of numbers.json, which maps the numbers of a model's versions to their contents."""
    return f"registry/{name}/numbers.json"


def numbers_in(keys: Iterable[str]) -> set[int]:
    """Return the numbers of the versions that keys belong to, including incomplete versions."""
    parts = [key.split("/") for key in keys]
    return {int(part[3]) for part in parts if len(part) > 4 and part[2] == "versions" and part[3].isdecimal()}


def version_in(key: str) -> int | None:
    """Return the number of the version whose manifest this key is; None for any other key."""
    parts = key.split("/")
    is_manifest = len(parts) == 5 and parts[2] == "versions" and parts[4] == MANIFEST and parts[3].isdecimal()
    return int(parts[3]) if is_manifest else None


def check_word(text: str, what: str) -> str:
    """Return the name of a model or an alias. Raises RegistryError if it is not allowed.

    Args:
        what: `model name` or `alias`. An alias must not consist of digits alone.
    """
    if not _NAME.fullmatch(text) or (what == "alias" and text.isdecimal()):
        raise RegistryError(
            f"{what} {text[:80]!r} is not allowed: up to 64 letters, digits, '.', '_' and '-', a letter or digit first"
            + (", and not digits alone, which name a version" if what == "alias" else "")
        )
    return text
