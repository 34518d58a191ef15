"""The quantizer of the VQ-GAN and the care of its codes while it is trained (docs/method.md 3).

The only tensor in a state dict is `embedding.weight`, as in published files. What training remembers about the use of
the codes lives in `CodeKeeper`, which saves and restores its own state.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What quantization found, for a latent of `code_dim` channels on a grid of T = height x width cells."""

    z: Tensor
    """[B, code_dim, height, width] chosen codes; its gradient goes straight through to `latent`."""
    indices_BT: Tensor
    """[B, T] int64 codes, row-major."""
    latent: Tensor
    """[B, code_dim, height, width] what the encoder said, before quantization."""
    loss: Tensor
    """Scalar, codebook and commitment terms together."""


class VectorQuantizer(nn.Module):
    """Nearest code under the squared Euclidean distance, found in fp32 whatever the autocast around it.

    The loss is |sg(z) - e|^2 + beta |z - sg(e)|^2, means over all elements. `legacy_beta` puts beta on the first term
    instead, as the published default does: the same value, other gradients. With `learned=False` (codes kept by a
    moving average) only the commitment term beta |z - sg(e)|^2 is left.
    """

    def __init__(self, codes: int, dim: int, beta: float, legacy_beta: bool = False, learned: bool = True) -> None:
        super().__init__()
        self.beta, self.legacy_beta, self.learned = beta, legacy_beta, learned
        self.embedding = nn.Embedding(codes, dim)
        # As published. So close together one code may take every latent at first: `CodeKeeper` re-seeds the others.
        nn.init.uniform_(self.embedding.weight, -1.0 / codes, 1.0 / codes)
        self.embedding.weight.requires_grad_(learned)

    def nearest(self, latent: Tensor) -> Tensor:
        """Latent [B, code_dim, height, width] to codes [B, height * width] int64."""
        batch, dim = latent.shape[:2]
        with torch.autocast(latent.device.type, enabled=False), torch.no_grad():
            codes = self.embedding.weight.float()
            flat = latent.permute(0, 2, 3, 1).reshape(-1, dim).float()
            # |z|^2 is the same for every code: leaving it out also leaves out its rounding
            partial = torch.addmm(codes.square().sum(1), flat, codes.t(), alpha=-2.0)
            return partial.argmin(1).view(batch, -1)

    def look_up(self, indices_BT: Tensor, height: int, width: int) -> Tensor:
        """Codes [B, height * width] to their vectors [B, code_dim, height, width]."""
        return self.embedding(indices_BT).unflatten(1, (height, width)).permute(0, 3, 1, 2)

    def forward(self, latent: Tensor) -> Quantized:
        """Quantize a latent [B, code_dim, height, width]."""
        indices_BT = self.nearest(latent)
        chosen, wanted = self.look_up(indices_BT, *latent.shape[2:]).float(), latent.float()
        commitment = F.mse_loss(wanted, chosen.detach())
        codebook = F.mse_loss(chosen, wanted.detach())
        if not self.learned:
            loss = self.beta * commitment
        elif self.legacy_beta:
            loss = self.beta * codebook + commitment
        else:
            loss = codebook + self.beta * commitment
        # written as a sum so that the gradient of z with respect to the latent is one
        return Quantized(wanted + (chosen - wanted).detach(), indices_BT, latent, loss)


Reduce = Callable[[Tensor], None]


def _alone(tensor: Tensor) -> None:
    """Sum over one worker: nothing to do."""


class CodeKeeper:
    """Moving averages of how often each code is used: re-seeds dead codes and, if asked, moves the codes themselves.

    `decay` is the memory of the averages; `move_codes` sets each code to the mean of the latents that chose it (the
    quantizer is then built with `learned=False`); a code whose average use falls under `dead_below` times an even
    share is set to a latent of the current batch. `reduce` sums a tensor over all workers in place; exactly one worker
    is `primary` and offers the new codes, so every worker ends up with the same ones.
    """

    def __init__(
        self,
        quantizer: VectorQuantizer,
        *,
        decay: float = 0.99,
        dead_below: float = 0.1,
        move_codes: bool = False,
        seed: int = 0,
        reduce: Reduce = _alone,
        primary: bool = True,
    ) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"decay {decay} must lie between 0 and 1")
        if move_codes == quantizer.learned:
            raise ValueError("codes are moved either by the optimizer or by averages: set ema_decay to choose one")
        self.quantizer, self.decay, self.dead_below, self.move_codes = quantizer, decay, dead_below, move_codes
        self.reduce, self.primary = reduce, primary
        self.generator = torch.Generator().manual_seed(seed)
        weight = quantizer.embedding.weight.detach()
        self.share = torch.full((len(weight),), 1.0 / len(weight), device=weight.device)
        self.mass = self.share[:, None] * weight

    @torch.no_grad()
    def update(self, quantized: Quantized) -> int:
        """Take in one training batch after its optimizer step; returns how many codes were re-seeded."""
        weight = self.quantizer.embedding.weight
        latents = quantized.latent.detach().permute(0, 2, 3, 1).reshape(-1, weight.shape[1]).float()
        indices = quantized.indices_BT.reshape(-1)
        count = torch.zeros_like(self.share).index_add_(0, indices, torch.ones_like(latents[:, 0]))
        total = torch.zeros_like(self.mass).index_add_(0, indices, latents)
        self.reduce(count)
        self.reduce(total)
        self.share.lerp_(count / count.sum(), 1.0 - self.decay)
        self.mass.lerp_(total / count.sum(), 1.0 - self.decay)
        if self.move_codes:
            # an unused code's mass and share shrink alike, so it stays where it is
            weight.copy_(self.mass / self.share.clamp_min(torch.finfo(self.share.dtype).tiny)[:, None])
        return self._restart(latents)

    def _restart(self, latents: Tensor) -> int:
        weight = self.quantizer.embedding.weight
        dead = (self.share < self.dead_below / len(weight)).nonzero().flatten()
        if len(dead) == 0:
            return 0
        pick = torch.randint(len(latents), (len(dead),), generator=self.generator)
        fresh = (
            latents[pick.to(latents.device)] if self.primary else torch.zeros_like(latents[:1]).expand(len(dead), -1)
        )
        fresh = fresh.contiguous()
        self.reduce(fresh)
        weight[dead] = fresh.to(weight.dtype)
        self.share[dead] = 1.0 / len(weight)
        self.mass[dead] = fresh / len(weight)
        return len(dead)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs to go on exactly as an uninterrupted one."""
        return {"share": self.share, "mass": self.mass, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        self.share.copy_(state["share"])
        self.mass.copy_(state["mass"])
        self.generator.set_state(state["generator"].cpu())
