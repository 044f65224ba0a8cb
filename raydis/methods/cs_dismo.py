"""C-S DisMo (Ren et al., arXiv 2102.10544): content and style, two units that are vectors. A reconstruction.

B batch, d_c content width, d_s style width, C H W image.

What the abstract says: the contents of all images follow one shared distribution, and the style of an image customises
this distribution by an affine map. Nothing is labelled. There is no public code, and we could not read the formulas.
What follows is our reconstruction:

- The map is f(c, s) = sigma(s) norm(c) + mu(s), with sigma and mu linear in s. norm(c) standardises the d_c values of
  an image, so that every content has mean 0 and variance 1 whatever the style. The variant `single` applies f to the
  content, and `multiple` to the features of each layer of the generator (AdaIN), as the names of the paper suggest.
- The codes come from two encoders, trained together with the generator. The paper seems to optimise a table of codes,
  one row for each image, and to train encoders on this table afterwards, as LORD does (arXiv 1906.11796). A table needs
  the index of each image, which a method does not see here.
- As in LORD, normal noise is added to the content in training, which limits what the content can hold. We add it to
  norm(c), because the encoder could make it ineffective before. Its deviation is 0.5, where LORD has 1 for contents
  that may grow.
- The loss is the mean absolute error on each level of a Laplacian pyramid, as in GLO (arXiv 1707.05776). The paper has
  a perceptual loss by VGG, whose weights would have to be downloaded.
- d_c is 16 and d_s is 8, for comparison with other methods. LORD has 128 and 256. The style must be the narrow one:
  with a style of its own for each image, nothing else keeps the style from holding everything.

Which factors are content and which are style is up to the data. An edit is a swap: the content of one image with the
style of another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from raydis.diffusion.samplers import Sampler
from raydis.methods.contract import Batch, Draws, Losses, Move
from raydis.methods.vector_units import VectorUnitMethod
from raydis.models.conv_vae import ConvEncoder
from raydis.models.customised import CustomisedGenerator, Variant, standardise
from raydis.models.precision import at_least_single


class CsDismo(VectorUnitMethod):
    """Minimise the error of images that are drawn from their noisy content and their style.

    Unit 0 is the standardised content, unit 1 the style.

    Args:
        image_size: H = W, px, a multiple of 16.
        image_channels: C.
        content_dim, style_dim: d_c and d_s.
        variant, channels: see `CustomisedGenerator`.
        hidden_dim: width of the dense layers of all networks.
        content_noise: standard deviation of the noise on the content in training.
        num_levels: levels of the Laplacian pyramid.
    """

    unit_names = ("content", "style")

    def __init__(
        self,
        *,
        image_size: int,
        image_channels: int,
        content_dim: int,
        style_dim: int,
        variant: Variant,
        hidden_dim: int,
        channels: Sequence[int],
        content_noise: float,
        num_levels: int = 3,
    ) -> None:
        super().__init__()
        self.content_encoder = ConvEncoder(image_size, image_channels, (content_dim,), hidden_dim)
        self.style_encoder = ConvEncoder(image_size, image_channels, (style_dim,), hidden_dim)
        self.generator = CustomisedGenerator(
            image_size=image_size,
            image_channels=image_channels,
            content_dim=content_dim,
            style_dim=style_dim,
            variant=variant,
            hidden_dim=hidden_dim,
            channels=channels,
        )
        self.content_noise = content_noise
        self.num_levels = num_levels
        self.register_units((content_dim, style_dim))

    @property
    def moves(self) -> Sequence[Move]:
        """One move, which trains all networks by Adam with LORD's betas, without weight decay."""
        modules = [self.content_encoder, self.style_encoder, self.generator]
        return [Move("reconstruct", modules, betas=(0.5, 0.999), weight_decay=0.0)]

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """Return the standard normal noise (B, d_c) on the content."""
        return {"noise": torch.randn(batch_size, self.unit_widths[0], generator=generator, device=generator.device)}

    def forward(self, batch: Batch, move: str) -> Losses:
        """Return the loss of a batch."""
        content, style = self._vectors(batch.images)
        drawn = self.generator(content + self.content_noise * batch.draws["noise"], style)
        return {"loss": pyramid_loss(at_least_single(drawn) - batch.images, self.num_levels)}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the standardised content and the style of images (B, C, H, W) in [-1, 1] as codes (B, 2, D)."""
        return self.pad(self._vectors(images))

    def _vectors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        (content,), (style,) = self.content_encoder(images), self.style_encoder(images)
        return standardise(at_least_single(content)), at_least_single(style)

    @torch.no_grad()
    def decode(
        self, codes: Tensor, noise: Tensor | None = None, steps: int | None = None, sampler: Sampler | None = None
    ) -> Tensor:
        """Return the images (B, C, H, W) in [-1, 1] that codes (B, 2, D) decode to.

        The content is standardised again, as an edit may have moved it out of the shared distribution.
        """
        content, style = self.cut(codes)
        return at_least_single(self.generator(standardise(content), style))


def pyramid_loss(differences: Tensor, num_levels: int) -> Tensor:
    """Return the sum of the mean absolute values of the levels of a Laplacian pyramid: a scalar.

    Each level but the last is what the next coarser picture of half the size lacks. The pyramid is linear, so the
    pyramid of a difference is the difference of two pyramids. GLO weights the sums of the levels by 2^(2j), which gives
    the same up to a constant factor, because level j has 2^(2j) times fewer values.

    Args:
        differences: drawn minus given images, (B, C, H, W), of which H and W are multiples of 2^(num_levels - 1).
        num_levels: 1 for the mean absolute error.
    """
    total = differences.new_zeros(())
    for _ in range(num_levels - 1):
        coarse = F.avg_pool2d(differences, 2)
        total = total + (differences - F.interpolate(coarse, scale_factor=2.0)).abs().mean()
        differences = coarse
    return total + differences.abs().mean()
