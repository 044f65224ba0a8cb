"""FactorVAE (Kim and Mnih, arXiv 1802.05983): a VAE that is penalised for the total correlation (TC) of its units.

B batch, N units.

A discriminator learns to tell samples of the aggregate posterior from samples in which each unit was shuffled over the
batch separately. Its logits estimate the total correlation, which the VAE (variational autoencoder) minimises. As in
the paper, the shuffled samples come from a second batch. The discriminator is updated after the VAE, on samples of
the updated VAE; disentanglement_lib takes both gradients from one forward pass instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from raydis.methods.contract import Batch, Draws, Losses, Move
from raydis.methods.vae import Posterior, Vae
from raydis.models.conv_vae import ConvDecoder, ConvEncoder
from raydis.models.precision import at_least_single


class FactorVae(Vae):
    """Minimise the loss of a VAE + gamma * TC, which a discriminator estimates.

    Args:
        encoder, decoder, num_units: as in `Vae`.
        discriminator: a network from N numbers to two logits: a sample of the posterior, and a shuffled one.
        gamma: weight of the total correlation.
        discriminator_rate_scale: learning rate of the discriminator, divided by that of the VAE.
    """

    second_batch = True

    def __init__(
        self,
        *,
        encoder: ConvEncoder,
        decoder: ConvDecoder,
        discriminator: nn.Module,
        num_units: int,
        gamma: float,
        discriminator_rate_scale: float = 1.0,
    ) -> None:
        super().__init__(encoder=encoder, decoder=decoder, num_units=num_units)
        self.discriminator = discriminator
        self.gamma = gamma
        self.discriminator_rate_scale = discriminator_rate_scale

    @property
    def moves(self) -> Sequence[Move]:
        """The move of the VAE, then that of the discriminator, whose shuffling couples the images of a batch."""
        return [
            *super().moves,
            Move(
                "discriminator",
                [self.discriminator],
                learning_rate_scale=self.discriminator_rate_scale,
                betas=(0.5, 0.9),
                weight_decay=0.0,
                couples=True,
            ),
        ]

    @property
    def averaged_modules(self) -> Sequence[nn.Module]:
        """The networks of the VAE. The discriminator is not used after training."""
        return super().moves[0].modules

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """Return the noise of the posterior for both batches, (B, N) each, and sort keys (B, N) for the shuffling."""
        device, shape = generator.device, (batch_size, self.num_units)
        others = torch.randn(shape, generator=generator, device=device)
        return super().draw(batch_size, generator) | {
            "others_noise": others,
            "shuffle": torch.rand(shape, generator=generator, device=device),
        }

    def forward(self, batch: Batch, move: str) -> Losses:
        """Return the losses of the VAE, or the cross-entropy of the discriminator."""
        return super().forward(batch, move) if move == "vae" else self._discriminator_losses(batch)

    def regularise(self, posterior: Posterior, kl: Tensor, draws: Draws) -> tuple[Tensor, Losses]:
        """Return KL + gamma * TC, and TC. The weights of the discriminator are constants here."""
        constant = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        joint, shuffled = at_least_single(functional_call(self.discriminator, constant, (posterior.sample,))).unbind(1)
        total_correlation = (joint - shuffled).mean()
        return kl + self.gamma * total_correlation, {"total_correlation": total_correlation}

    def _discriminator_losses(self, batch: Batch) -> Losses:
        assert batch.others is not None
        with torch.no_grad():
            joint = self.sample_posterior(batch.images, batch.draws["noise"]).sample
            others = self.sample_posterior(batch.others, batch.draws["others_noise"]).sample
            shuffled = shuffle_units(others, batch.draws["shuffle"])
        logits = at_least_single(self.discriminator(torch.cat([joint, shuffled])))
        labels = torch.arange(2, device=logits.device).repeat_interleave(len(joint))
        return {"loss": F.cross_entropy(logits, labels)}


def shuffle_units(samples: Tensor, keys: Tensor) -> Tensor:
    """Permute each column of samples (B, N) separately, into the order of its keys (B, N)."""
    return samples.gather(0, keys.argsort(dim=0))
