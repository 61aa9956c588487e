"""Vision transformers for faces: vit_t, vit_s, vit_b, vit_l.

Patches of 9 x 9 pixels (144 tokens of a 112 x 112 image), pre-norm blocks of attention and a ReLU6 perceptron, no class token: all
tokens, side by side, go through linear - BN - linear - BN to the embedding. Attention is torch's fused one. Two regularizers act in
training only: stochastic depth, and masking, which drops a share of the tokens before the blocks (so it also saves their
time) and puts `mask_token` in their places afterwards.

Source: ViT (arXiv 2010.11929), stochastic depth (1603.09382), masking after MAE (2111.06377); shapes and state names of
arcface_torch, so its weights load with strict=True. Its code reads a masking ratio as on or off: whatever is above 0 masks 10 % of the tokens,
also in the networks that its configurations call `mask_005`. The defaults here are what is masked there.
"""

from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from attfc.backbones.common import Backbone, in_float32
from attfc.errors import UserError

__all__ = ["VIT_SHAPES", "VisionTransformer"]

# name -> (width, depth, default of drop_path, default of mask_ratio), as arcface_torch builds these names; its only vit_l is `vit_l_dp005_mask_005`
VIT_SHAPES: dict[str, tuple[int, int, float, float]] = {
    "vit_t": (256, 12, 0.1, 0.1),
    "vit_s": (512, 12, 0.1, 0.1),
    "vit_b": (512, 24, 0.1, 0.1),
    "vit_l": (768, 24, 0.05, 0.1),
}

# Shapes: B images, N tokens, H heads, E numbers per token.


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, E) -> (B, N, E)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BNE: Tensor) -> Tensor:
        query, key, value = self.qkv(x_BNE).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed_BHNe = F.scaled_dot_product_attention(query, key, value)
        return cast(Tensor, self.proj(mixed_BHNe.transpose(1, 2).flatten(2)))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x)); each sum's branch is left out with probability `drop_path`."""

    def __init__(self, width: int, heads: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        wide, drop = nn.Linear(width, 4 * width), nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=wide, relu=nn.ReLU6(), drop1=drop, fc2=nn.Linear(4 * width, width), drop2=drop)
        )
        self.drop_path = drop_path

    def _branch(self, x: Tensor) -> Tensor:
        """Zero the branch of whole images in training, scaled so that its mean stays."""
        if not self.training or self.drop_path == 0.0:
            return x
        keep = 1.0 - self.drop_path
        return x * (x.new_empty(x.shape[0], 1, 1).bernoulli_(keep) / keep)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._branch(self.attn(self.norm1(x)))
        return x + self._branch(self.mlp(self.norm2(x)))


class VisionTransformer(Backbone):
    """Embed faces with a vision transformer.

    Args:
        width: numbers per token, E.
        depth: transformer blocks.
        default_drop_path, default_mask_ratio: `drop_path` and `mask_ratio` where these are None.
        embedding_size: length of the output.
        image_size: height and width of the input in pixels; less than half a patch may be left over (112 = 12 x 9 + 4).
        patch_size: in pixels.
        heads: of the attention.
        dropout: after the patch embedding and inside the perceptrons.
        drop_path: stochastic depth: probability to leave out the last block's branches; earlier blocks' rise to it from 0.
        mask_ratio: share of the tokens replaced by the mask token in training.
        checkpointing: compute the blocks again in backward instead of keeping their activations; same results.
        name: for messages.

    Input (B, 3, S, S) float, RGB in [-1, 1]; output (B, embedding_size) float32, also inside autocast. `eval()` is deterministic.

    Initial values: linear layers and positions truncated N(0, 0.02), biases 0, mask token N(0, 0.02), norms 1 and 0. The mask
    token takes no gradient while `mask_ratio` is 0, since nothing would give it one.

    Raises:
        UserError: sizes or shares that do not fit.

    Source: ViT (arXiv 2010.11929) and the state names of arcface_torch. Differs: attention inside autocast runs in the
    autocast type with float32 accumulation (there: all of it in float32).
    """

    def __init__(
        self,
        width: int,
        depth: int,
        default_drop_path: float = 0.0,
        default_mask_ratio: float = 0.0,
        *,
        embedding_size: int = 512,
        image_size: int = 112,
        patch_size: int = 9,
        heads: int = 8,
        dropout: float = 0.0,
        drop_path: float | None = None,
        mask_ratio: float | None = None,
        checkpointing: bool = False,
        name: str = "vit",
    ) -> None:
        mask_ratio = default_mask_ratio if mask_ratio is None else mask_ratio
        drop_path = default_drop_path if drop_path is None else drop_path
        if heads < 1 or width % heads:
            raise UserError(f"heads {heads} of backbone {name} do not divide its width {width}: use 4, 8 or 16")
        if patch_size < 1 or image_size < patch_size or image_size % patch_size >= patch_size / 2:
            lower = max(image_size // max(patch_size, 1), 1) * patch_size
            raise UserError(
                f"image_size {image_size} does not fit backbone {name} with patches of {patch_size}: "
                f"use a multiple of the patch size, such as {lower} or {lower + patch_size}"
            )
        super().__init__(
            name,
            embedding_size,
            image_size,
            checkpointing,
            dropout=dropout,
            drop_path=drop_path,
            mask_ratio=mask_ratio,
        )
        self.mask_ratio = mask_ratio
        tokens = (image_size // patch_size) ** 2
        # Pixels right of and below the last whole patch are not seen.
        patches = nn.Conv2d(3, width, patch_size, patch_size)
        self.patch_embed = nn.Sequential(OrderedDict(proj=patches, flat=nn.Flatten(2)))
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width), requires_grad=self.mask_ratio > 0)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, dropout, drop_path * i / max(depth - 1, 1)) for i in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(width * tokens, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size, eps=2e-5),
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x_BNE = self.dropout(self.patch_embed(x).transpose(1, 2) + self.pos_embed)
        masking = self.training and self.mask_ratio > 0
        if masking:
            x_BNE, order_BN = self._drop_tokens(x_BNE)
        x_BNE = self.norm(self.through(self.blocks, x_BNE))
        if masking:
            x_BNE = self._fill_tokens(x_BNE, order_BN)
        return in_float32(x_BNE.flatten(1), self.feature)

    def _drop_tokens(self, x_BNE: Tensor) -> tuple[Tensor, Tensor]:
        """Return a random share of each image's tokens, and the random order whose first ones they are."""
        order_BN = torch.rand(x_BNE.shape[:2], device=x_BNE.device).argsort(dim=1)
        kept = max(1, int(x_BNE.shape[1] * (1.0 - self.mask_ratio)))  # rounded down, as published: 129 of 144 at 0.1
        return _pick(x_BNE, order_BN[:, :kept]), order_BN

    def _fill_tokens(self, kept_BNE: Tensor, order_BN: Tensor) -> Tensor:
        """Put the tokens back in their places, and the mask token into the places of those that were dropped."""
        missing = order_BN.shape[1] - kept_BNE.shape[1]
        mask_BNE = self.mask_token.to(kept_BNE.dtype).expand(kept_BNE.shape[0], missing, -1)
        return _pick(torch.cat([kept_BNE, mask_BNE], dim=1), order_BN.argsort(dim=1))


def _pick(x_BNE: Tensor, places_BM: Tensor) -> Tensor:
    return x_BNE.gather(1, places_BM.unsqueeze(-1).expand(-1, -1, x_BNE.shape[-1]))
