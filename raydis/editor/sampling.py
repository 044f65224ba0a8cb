"""Choose the number of sampling steps and the sampler for drawing images, or refuse what a model cannot do."""

from __future__ import annotations

from typing import NamedTuple

from raydis.diffusion.samplers import DEFAULT_SAMPLER, SAMPLERS, Sampler, usual_steps
from raydis.errors import EditError


class Sampling(NamedTuple):
    """How images are drawn. Both are None for a model that draws in a single pass."""

    steps: int | None
    sampler: Sampler | None


def choose_sampling(
    max_steps: int | None,
    steps: int | None,
    sampler: str | None,
    *,
    default_steps: int | None = None,
    keep_details: bool = False,
    takes_noise: bool = False,
) -> Sampling:
    """Return the steps and the sampler to draw with.

    Args:
        max_steps: the model's largest number of steps; None for a model that draws in a single pass.
        steps: None for the default.
        sampler: None for the default.
        keep_details: whether the noise is the image's own. Among samplers, only the inversion of `ddim` finds it.
        takes_noise: whether a model that draws in a single pass takes noise, such as the residual of a latent.
        default_steps: the model's own default; None for `usual_steps`, which is also the default if details are kept,
            since few steps do not keep them.

    Raises:
        EditError: one of them is given to a model that draws in a single pass, steps are out of range, or the sampler
            does not exist or cannot keep details.
    """
    if max_steps is None:
        kept = keep_details and not takes_noise
        asked = {"steps": steps is not None, "sampler": sampler is not None, "keep_details": kept}
        if any(asked.values()):
            named = " and ".join(name for name, is_set in asked.items() if is_set)
            without = "" if takes_noise else ", without noise"
            raise EditError(f"this model draws in a single pass{without}: leave {named} out")
        return Sampling(None, None)
    if steps is None:
        steps = usual_steps(max_steps) if keep_details or default_steps is None else default_steps
    if not 1 <= steps <= max_steps:
        raise EditError(f"steps={steps} is out of range: this model draws in 1 to {max_steps} steps")
    return Sampling(steps, choose_sampler(sampler, keep_details=keep_details))


def choose_sampler(sampler: str | None, *, keep_details: bool) -> Sampler:
    """Return the sampler with this name; for None the default, or `ddim` if details are kept.

    Raises:
        EditError: there is no such sampler, or it cannot keep details.
    """
    if keep_details and sampler not in (None, "ddim"):
        raise EditError(f"sampler={sampler} cannot keep details: only ddim is inverted, leave the sampler out")
    if sampler is None:
        return "ddim" if keep_details else DEFAULT_SAMPLER
    for known in SAMPLERS:
        if sampler == known:
            return known
    raise EditError(f"unknown sampler {sampler}: use {', '.join(SAMPLERS)}")
