"""Train, search and serve disentangled diffusion models on Ray.

After a sweep, in the folder that it ran in:

>>> import raydis
>>> editor = raydis.Editor.open("quickstart@best")  # from the registry in ./runs
>>> len(editor.units()) == editor.num_units
True

Codes that come from elsewhere are scored by `raydis.evaluate(codes, factors)`, which needs neither torch nor Ray.

`raydis.Editor`, `raydis.RunConfig` and `raydis.evaluate` are imported at their first use. `import raydis` therefore
imports neither torch nor Ray, and stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raydis.version import __version__

if TYPE_CHECKING:
    from raydis.config import RunConfig
    from raydis.editor.editor import Editor
    from raydis.evaluation import evaluate

__all__ = ["Editor", "RunConfig", "__version__", "evaluate"]


def __dir__() -> list[str]:
    """Return the names of the package, with those that are not imported yet."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import a public class at its first use (PEP 562)."""
    match name:
        case "Editor":
            from raydis.editor.editor import Editor

            return Editor
        case "RunConfig":
            from raydis.config import RunConfig

            return RunConfig
        case "evaluate":
            from raydis.evaluation import evaluate

            return evaluate
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
