"""ProtoVAE (Patil, Evanusa and JaJa, arXiv 2305.09092): a VAE that learns from its own interventions. A reconstruction.

B batch, N units, E width of an embedding, C H W image.

Only abstracts of the paper were available to us, and there is no public code. From them come: a variational autoencoder
(VAE), interventions on single units during training, a prototypical network that is trained without labels, and local
isometry. All else is our choice, after Patil et al.'s arXiv 2210.10920 and Snell et al. (NeurIPS 2017), so results of
this method are not results of the paper. It has nothing to do with another ProtoVAE (Gautam et al., NeurIPS 2022), a
classifier with class prototypes, whose code is public.

In each step, one unit of each image is changed, and both versions are decoded. A network g embeds the pair of images,
and has to tell which unit was changed. A caution: where the decoder is linear and isometric, changes along the axes of
any rotated basis can be told apart as well, so this loss alone does not choose the axes. Compare with beta-VAE at the
same beta.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydis.methods.contract import Draws, Losses, Move
from raydis.methods.intervene import Source, choose_units, draw_intervention, intervene
from raydis.methods.vae import Posterior, Vae, bernoulli_means, gaussian_kls, zero_to_one
from raydis.models.conv_vae import ConvDecoder, ConvEncoder, PairEncoder
from raydis.models.precision import at_least_single

SMALLEST_CHANGE = 0.25  # of a unit, in its standard deviations over the batch


class ProtoVae(Vae):
    """Minimise the loss of a beta-VAE + the weighted losses of an episode of interventions.

    Only active units are changed, whose KL divergence exceeds `min_kl`: a change that the decoder ignores cannot be
    told, and would force information into units that need none. The episode has three losses:

    - `prototype`: half of the pairs of each unit give its prototype, the mean of their embeddings; the others are
      classified by their squared distances to all prototypes. It is the cross-entropy, at most about ln N.
    - `isometry`: the squared difference of an embedding's length, in units of a learned scale, and the size of the
      change.
    - `cycle`: the squared distance of the posterior mean of the changed image from the changed code, summed over units.

    Args:
        encoder, decoder, num_units: as in `Vae`.
        pair_encoder: g.
        beta: weight of the KL divergence.
        prototype_weight, isometry_weight, cycle_weight: of the three losses. If all are 0, this is beta-VAE.
        warmup_share: share of the training budget, in [0, 1), during which `prototype_weight` rises from 0.
        intervention: where a unit's new value comes from; see `intervene`.
        min_kl: nats.
    """

    couples_images = True

    def __init__(
        self,
        *,
        encoder: ConvEncoder,
        decoder: ConvDecoder,
        num_units: int,
        pair_encoder: PairEncoder,
        beta: float = 1.0,
        prototype_weight: float = 1.0,
        isometry_weight: float = 0.1,
        cycle_weight: float = 1.0,
        warmup_share: float = 0.1,
        intervention: Source = "batch",
        min_kl: float = 0.1,
    ) -> None:
        super().__init__(encoder=encoder, decoder=decoder, num_units=num_units)
        self.pair_encoder = pair_encoder
        self.beta = beta
        self.prototype_weight = prototype_weight
        self.isometry_weight = isometry_weight
        self.cycle_weight = cycle_weight
        self.warmup_share = warmup_share
        self.intervention: Source = intervention
        self.min_kl = min_kl
        self.register_buffer("warmth", torch.ones(()), persistent=False)  # the factor of `prototype_weight`
        self.warmth: Tensor

    @property
    def learns_from_episodes(self) -> bool:
        """Whether any loss of the episode counts."""
        return bool(self.prototype_weight or self.isometry_weight or self.cycle_weight)

    @property
    def moves(self) -> Sequence[Move]:
        """One move, in which the VAE and g cooperate."""
        modules = [self.encoder, self.decoder, *([self.pair_encoder] if self.learns_from_episodes else [])]
        return [Move("vae", modules, weight_decay=0.0, couples=self.learns_from_episodes)]

    @property
    def averaged_modules(self) -> Sequence[nn.Module]:
        """The networks of the VAE. g is not used after training."""
        return [self.encoder, self.decoder]

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """Return the noise of the posterior (B, N), then what the intervention needs."""
        noise = super().draw(batch_size, generator)
        return noise | draw_intervention(batch_size, self.num_units, self.intervention, generator)

    def begin_step(self, share: float) -> None:
        """Set how far the weight of the prototypes has risen."""
        self.warmth.fill_(min(share / self.warmup_share, 1.0) if self.warmup_share else 1.0)

    def regularise(self, posterior: Posterior, kl: Tensor, draws: Draws) -> tuple[Tensor, Losses]:
        """Return beta * KL + the weighted losses of the episode, and these losses."""
        regulariser = self.beta * kl
        if not self.learns_from_episodes:
            return regulariser, {}
        active = gaussian_kls(posterior.mean, posterior.log_variance).mean(0) > self.min_kl
        losses = self.episode(posterior.mean, active, draws)
        weighted = (
            self.warmth * self.prototype_weight * losses["prototype"]
            + self.isometry_weight * losses["isometry"]
            + self.cycle_weight * losses["cycle"]
        )
        return regulariser + weighted, losses

    def episode(self, codes: Tensor, active: Tensor, draws: Draws) -> Losses:
        """Change a unit of each of the codes (B, N), and return the losses that follow.

        A row whose unit changes by less than a quarter of its standard deviation is left out. If all rows are, for
        example because no unit is active (N,), the losses are 0.
        """
        units = choose_units(active, draws["unit_keys"])
        changed = intervene(codes, units, draws, self.intervention)
        sizes = (changed - codes).gather(1, units[:, None]).squeeze(1).abs()  # (B,)
        deviations = codes.detach().std(0, correction=0)
        valid = active[units] & (sizes > SMALLEST_CHANGE * deviations[units])
        before, after = bernoulli_means(self.decoder(torch.cat([codes, changed]))).chunk(2)
        embeddings = at_least_single(self.pair_encoder(before, after))
        support, query = split_episode(units, valid, self.num_units)
        lengths = torch.linalg.vector_norm(embeddings, dim=1) / self.pair_encoder.scale
        encoded = at_least_single(self.encoder(zero_to_one(after))[0])
        return {
            "prototype": prototypical_loss(embeddings, units, support, query, self.num_units),
            "isometry": mean_over((lengths - sizes).square(), valid),
            "cycle": mean_over((encoded - changed.detach()).square().sum(1), valid),
        }


def split_episode(classes: Tensor, valid: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return which rows support a class and which are queries, (B,) each: the valid rows of a class in turn.

    Args:
        classes: (B,), integers below `num_classes`.
        valid: (B,). Other rows are neither, nor are those of a class with fewer than two valid rows.
    """
    members = F.one_hot(classes, num_classes) * valid[:, None]  # (B, K)
    ranks = (members.cumsum(0) * members).sum(1)  # from 1 within each class
    usable = valid & (members.sum(0) >= 2)[classes]
    return usable & (ranks % 2 == 1), usable & (ranks % 2 == 0)


def find_prototypes(embeddings: Tensor, classes: Tensor, support: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the mean (K, E) of the embeddings (B, E) that support each class, and whether it has any (K,)."""
    members = (F.one_hot(classes, num_classes) * support[:, None]).to(embeddings.dtype)
    counts = members.sum(0)
    sums = (members[:, :, None] * embeddings[:, None]).sum(0)  # a matrix product would be rounded by autocast
    return sums / counts.clamp(min=1.0)[:, None], counts > 0


def prototypical_loss(embeddings: Tensor, classes: Tensor, support: Tensor, query: Tensor, num_classes: int) -> Tensor:
    """Return the cross-entropy of the queries' classes given their squared distances to the prototypes, in nats.

    Args:
        embeddings: (B, E).
        classes: (B,), integers below `num_classes`.
        support, query: (B,) each, of `split_episode`. Without queries, the loss is 0.
    """
    prototypes, present = find_prototypes(embeddings, classes, support, num_classes)
    distances = (embeddings[:, None] - prototypes).square().sum(2)  # (B, K)
    # A finite number, because infinity would make the gradients of unused rows NaN.
    logits = (-distances).masked_fill(~present, -torch.finfo(distances.dtype).max / 4)
    return mean_over(F.cross_entropy(logits, classes, reduction="none"), query)


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of the values (B,) that `chosen` (B,) marks, or 0 if it marks none."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp(min=1)
