"""Tiny IResNets of our own for CPU work (r10_tiny, r6_tiny), 56 x 56 input. No published weights exist for them.

On two CPU cores the elementwise passes over large maps, not the multiplications, are what a small IResNet spends its time on.
Three changes against the large ones, each measured by benchmarks/backbones.py:
- the stem is a 4x4 convolution with stride 2: nothing runs at full resolution;
- a stage halves its map in the first convolution of its first block, not in the second;
- LeakyReLU with slope 0.25, the value that PReLU starts from: torch's PReLU kernels take a third of the step on the CPU.
The block is otherwise IResNet's: BN - conv 3x3 - BN - activation - conv 3x3 - BN, plus the shortcut.
"""

import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from attfc.backbones.common import Backbone, in_float32, normal_convolutions

__all__ = ["TINY_BLOCKS", "TinyIResNet"]

# name -> (channels of the stem and of each block, stride of each block)
TINY_BLOCKS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "r10_tiny": ((32, 32, 64, 128, 192), (1, 2, 2, 2)),
    "r6_tiny": ((16, 32, 64), (2, 2)),
}


class TinyBlock(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.25, inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.residual(x) + self.shortcut(x))


class TinyIResNet(Backbone):
    """Embed small faces on few CPU cores.

    Args:
        channels: of the stem and of each block.
        strides: of each block, 1 or 2.
        embedding_size: length of the output.
        image_size: height and width of the input in pixels, a multiple of 8; 56 is what they are made for.
        dropout: share of the last feature map set to zero in training, before the linear layer.
        checkpointing: compute the blocks again in backward instead of keeping their activations; same results.
        name: for messages.

    Input (B, 3, S, S) float, RGB in [-1, 1]; output (B, embedding_size) float32, also inside autocast. Fastest with
    channels-last memory and bfloat16 autocast. Initial values as in IResNet.

    Raises:
        UserError: an image size or dropout that does not fit.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        embedding_size: int = 512,
        image_size: int = 56,
        dropout: float = 0.0,
        checkpointing: bool = False,
        name: str = "tiny",
    ) -> None:
        super().__init__(name, embedding_size, image_size, checkpointing, 8, dropout=dropout)
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels[0], 4, 2, 1, bias=False),
            nn.BatchNorm2d(channels[0]),
            nn.LeakyReLU(0.25, inplace=True),
        )
        self.blocks = nn.Sequential(*map(TinyBlock, channels[:-1], channels[1:], strides))
        side = math.ceil(image_size / (2 * math.prod(strides)))
        self.norm = nn.BatchNorm2d(channels[-1])
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels[-1] * side**2, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        self.features.weight.requires_grad_(False)
        normal_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.through(self.blocks, self.stem(x))
        return in_float32(self.dropout(self.norm(x)).flatten(1), self.fc, self.features)
