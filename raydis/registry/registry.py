"""The registry of named models in a store: numbered versions that never change, and aliases that point to them.

    registry/<name>/versions/<n>/{config.json, weights.safetensors, metrics.json, manifest.json}
    registry/<name>/numbers.json
    registry/<name>/aliases/<alias>.json

Several processes may use a registry at once. numbers.json and the aliases are only changed by conditional writes, which
fail if the file has changed since it was read. numbers.json maps each number to one content, identified by the sha256
of its manifest.json, and is written before anything is uploaded. Registering the same content again, at the same time
or after an interruption, finds its number and completes the version. A version exists once its manifest.json does.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raydis.checkpoint.fetch import download_checkpoint
from raydis.checkpoint.manifest import MANIFEST, METRICS, Manifest, parse_manifest
from raydis.checkpoint.open import Checkpoint
from raydis.checkpoint.text import from_json
from raydis.checkpoint.verify import entry_of
from raydis.errors import CheckpointError, RegistryError
from raydis.registry.names import ModelRef, alias_key, check_word, numbers_in, numbers_key, promote_command, version_in
from raydis.store import Store, StoreConflict, StoreMissing

DEFAULT_ALIAS = "best"
MAX_TRIES = 100  # of one conditional write; each failed try means that another process has succeeded


@dataclass(frozen=True)
class AliasState:
    """The state of an alias at the time when it was read.

    Attributes:
        version: the version that the alias points to; None if the alias does not exist.
        previous: the version before the last move, for a rollback.
        moves: number of moves so far. It makes every state, and so every tag, unique.
        tag: the store's tag of this state.
    """

    version: int | None = None
    previous: int | None = None
    moves: int = 0
    tag: str | None = None


class Registry:
    """The models of one store. Every method reads the store; nothing is cached in memory."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def register(self, checkpoint: Checkpoint, name: str) -> int:
        """Add a checkpoint, without its training state, as a version, and return the version's number.

        The same content always gets the same number, even if several processes register it; other content gets the
        next number. An interrupted registration is completed by registering the same content again.

        Raises:
            CheckpointError: a file of the checkpoint changed after it was verified.
            RegistryError: `name` is not allowed.
            StoreError: the store failed.
        """
        check_word(name, "model name")
        manifest = checkpoint.manifest.without_training()
        text = manifest.to_json()
        version, is_complete = self._number_of(name, hashlib.sha256(text).hexdigest())
        if not is_complete:
            prefix = ModelRef(name, version).prefix
            for file in sorted(manifest.files):
                self._send(checkpoint, file, f"{prefix}/{file}")
            self.store.write(f"{prefix}/{MANIFEST}", text)
        return version

    def _send(self, checkpoint: Checkpoint, file: str, key: str) -> None:
        """Upload one verified file of a checkpoint. Raises CheckpointError if it has changed since."""
        if (data := checkpoint.files.texts.get(file)) is not None:
            self.store.write(key, data)
            return
        self.store.upload(checkpoint.files.path(file), key)
        checkpoint.files.path(file)  # a file that changed during the upload may be stored half old, half new

    def names(self) -> list[str]:
        """Return the names of the models with at least one version, sorted."""
        return sorted({key.split("/")[1] for key in self.store.list("registry/") if version_in(key)})

    def versions(self, name: str) -> list[int]:
        """Return the numbers of the complete versions of a model, in order; empty if the model does not exist."""
        return sorted(version for key in self.store.list(f"registry/{name}/versions/") if (version := version_in(key)))

    def aliases(self, name: str) -> dict[str, int]:
        """Return the version number that each alias of a model points to, by alias."""
        prefix = f"registry/{name}/aliases/"
        names = [key.removeprefix(prefix).removesuffix(".json") for key in self.store.list(prefix)]
        states = {alias: self.alias(name, alias).version for alias in names}
        return {alias: version for alias, version in states.items() if version is not None}

    def resolve(self, text: str) -> ModelRef:
        """Return the version that `name@3`, `name@alias` or `name` (which means `name@best`) names.

        Raises:
            RegistryError: no such model, version or alias; the message lists those that exist.
        """
        name, _, wanted = text.partition("@")
        check_word(name, "model name")
        if wanted.isdecimal():
            version: int | None = int(wanted)
        else:
            version = self.alias(name, check_word(wanted or DEFAULT_ALIAS, "alias")).version
        if version is None or not self.store.exists(f"{ModelRef(name, version).prefix}/{MANIFEST}"):
            raise RegistryError(self._nothing_at(name, wanted or DEFAULT_ALIAS, version))
        return ModelRef(name, version)

    def manifest(self, ref: ModelRef) -> Manifest:
        """Return the manifest of a version. Raises RegistryError if there is no such version."""
        key = f"{ref.prefix}/{MANIFEST}"
        try:
            return parse_manifest(self.store.read(key), f"{self.store.uri}/{key}")
        except StoreMissing as error:
            raise RegistryError(self._nothing_at(ref.name, str(ref.version), ref.version)) from error

    def metrics(self, ref: ModelRef) -> dict[str, Any]:
        """Return the content of a version's metrics.json.

        Raises:
            RegistryError: there is no such version.
            CheckpointError: the file does not match the version's manifest.
        """
        expected = self.manifest(ref).files[METRICS].sha256
        text, named = self.store.read(f"{ref.prefix}/{METRICS}"), f"{METRICS} of {ref} in {self.store.uri}"
        found = entry_of(text).sha256
        if found != expected:
            raise CheckpointError(f"{named} is damaged: expected sha256 {expected}, found {found}")
        return from_json(named, text)

    def fetch(self, ref: ModelRef, cache_dir: Path) -> Checkpoint:
        """Download, verify and open a version; see `download_checkpoint`."""
        return download_checkpoint(self.store, ref.prefix, cache_dir)

    def alias(self, name: str, alias: str) -> AliasState:
        """Return the present state of an alias. Raises RegistryError if its file cannot be read as an alias."""
        key = alias_key(name, alias)
        tag = self.store.tag(key)  # before the text: if the alias moves in between, a write with this tag fails
        if tag is None:
            return AliasState()
        try:
            tree = json.loads(self.store.read(key))
            return AliasState(int(tree["version"]), tree["previous"], int(tree["moves"]), tag)
        except StoreMissing:
            return AliasState()
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryError(
                f"{key} in {self.store.uri} is not an alias ({error!r}): delete it and set the alias again"
            ) from error

    def move_alias(self, name: str, alias: str, version: int, *, expected: AliasState) -> None:
        """Point an alias to a version, if its state is still `expected`, which `alias` returned.

        Raises:
            RegistryError: no such version.
            StoreConflict: the alias moved in the meantime; nothing was changed.
        """
        if not self.store.exists(f"{ModelRef(name, version).prefix}/{MANIFEST}"):
            raise RegistryError(self._nothing_at(name, str(version), version))
        state = {
            "version": version,
            "previous": expected.version,
            "moves": expected.moves + 1,
            "moved": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        key, text = alias_key(name, alias), f"{json.dumps(state)}\n".encode()
        if expected.tag is None:
            self.store.write(key, text, if_absent=True)
        else:
            self.store.write(key, text, if_match=expected.tag)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias to a version, whatever it points to now. Raises RegistryError if there is no such version."""
        for _ in range(MAX_TRIES):
            state = self.alias(name, alias)
            if state.version == version:
                return None
            try:
                return self.move_alias(name, alias, version, expected=state)
            except StoreConflict:
                continue
        raise RegistryError(f"{name}@{alias} in {self.store.uri} moved {MAX_TRIES} times meanwhile: try again")

    def _number_of(self, name: str, content: str) -> tuple[int, bool]:
        """Return the number of a content, which may be assigned now, and whether the version is complete."""
        for _ in range(MAX_TRIES):
            keys = list(self.store.list(f"registry/{name}/"))
            complete = {version for key in keys if (version := version_in(key))}
            contents, tag = self._contents(name) if numbers_key(name) in keys else ({}, None)
            for version in sorted(complete - set(contents)):  # registered by an older raydis, without numbers.json
                text = self.store.read(f"{ModelRef(name, version).prefix}/{MANIFEST}")
                contents[version] = hashlib.sha256(text).hexdigest()
            if known := [version for version, other in contents.items() if other == content]:
                return min(known), min(known) in complete
            version = max([*contents, *numbers_in(keys)], default=0) + 1
            text = json.dumps(dict(sorted((contents | {version: content}).items())), indent=2)
            try:
                self.store.write(numbers_key(name), f"{text}\n".encode(), if_absent=tag is None, if_match=tag)
            except StoreConflict:
                continue
            return version, False
        raise RegistryError(f"{numbers_key(name)} in {self.store.uri} changed {MAX_TRIES} times meanwhile: try again")

    def _contents(self, name: str) -> tuple[dict[int, str], str | None]:
        """Return the contents by version number from numbers.json, and the file's tag; ({}, None) without the file."""
        key = numbers_key(name)
        tag = self.store.tag(key)  # before the text, as in `alias`
        if tag is None:
            return {}, None
        try:
            return {int(number): str(content) for number, content in json.loads(self.store.read(key)).items()}, tag
        except (ValueError, AttributeError) as error:
            raise RegistryError(
                f"{key} in {self.store.uri} cannot be read ({error!r}): delete it, and raydis rebuilds it from the "
                "versions"
            ) from error

    def _nothing_at(self, name: str, wanted: str, version: int | None) -> str:
        """Return the error message for a reference to nothing: what exists instead, and which command helps."""
        missing, versions = f"no model {name}@{wanted} in {self.store.uri}", self.versions(name)
        if not versions:
            found = ", ".join(self.names()) or "no models"
            return f"{missing}; found {found}. Run a sweep first: it registers its best trial"
        listed = f"found version{'s' * (len(versions) > 1)} {', '.join(map(str, versions))}"
        if wanted.isdecimal():
            begun = set(self._contents(name)[0]) | numbers_in(self.store.list(f"registry/{name}/"))
            interrupted = version in begun
            return f"{missing}; {listed}" + ("; the registration of this one was interrupted" if interrupted else "")
        set_it = f"Run `{promote_command(ModelRef(name, versions[-1]), wanted, self.store.uri)}` to set it"
        if version is not None:
            return f"{missing}: it points to version {version}, which is gone; {listed}. {set_it}"
        aliases = ", ".join(self.aliases(name))
        return f"{missing}; {listed} {f'with aliases {aliases}' if aliases else f'without alias {wanted}'}. {set_it}"
