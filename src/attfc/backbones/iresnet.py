"""IResNet: the residual network of ArcFace, r18 to r200.

A block is BN - conv 3x3 - BN - PReLU - conv 3x3 (stride) - BN, added to its input, or to a 1x1 projection of it where the shape
changes; nothing follows the sum. A 3x3 stem at full resolution, four stages that each halve the map, then BN - dropout -
flatten - linear - BN. Convolutions have no bias. The feature map, not its mean, goes to the linear layer, so a network is built
for one image size: any multiple of 8, 112 by default.

Cost at 112 x 112: 2.6 (r18) to 23.4 (r200) G multiply-accumulates per image; activations of r100 take about 110 MiB per image in float32
while training (`checkpointing=True`: about a third).
Source: ArcFace (arXiv 1801.07698), section 3.2; state names and shapes of arcface_torch, so its weights load with strict=True.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import cast

from torch import Tensor, nn

from attfc.backbones.common import Backbone, in_float32, normal_convolutions

__all__ = ["IRESNET_BLOCKS", "IResNet"]

IRESNET_BLOCKS = {
    "r18": (2, 2, 2, 2),
    "r34": (3, 4, 6, 3),
    "r50": (3, 4, 14, 3),
    "r100": (3, 13, 30, 3),
    "r200": (6, 26, 60, 6),
}


class Block(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return cast(Tensor, self.bn3(self.conv2(x)) + shortcut)


class IResNet(Backbone):
    """Embed faces with an IResNet.

    Args:
        blocks: residual blocks of each of the four stages.
        channels: of the stem and of the four stages.
        embedding_size: length of the output.
        image_size: height and width of the input in pixels, a multiple of 8; the last map is ceil(image_size / 16) wide.
        dropout: share of the last feature map set to zero in training, before the linear layer.
        checkpointing: compute the blocks again in backward instead of keeping their activations; same results.
        zero_init_residual: start the last BN of every block at 0, so that each block starts as its shortcut (Goyal et al.,
            arXiv 1706.02677). Off by default, as in arcface_torch.
        name: for messages.

    Input (B, 3, S, S) float, RGB in [-1, 1]; output (B, embedding_size) float32, also inside autocast.

    Initial values: convolutions N(0, 0.1), BN 1 and 0, PReLU 0.25, linear layer torch's default. The scale of the last BN is
    fixed at 1 (no gradient): the length of an embedding does not matter to a head that normalizes it.

    Raises:
        UserError: an image size or dropout that does not fit.

    Source: ArcFace (arXiv 1801.07698) and the state names of arcface_torch. Differs: no fp16 argument, use torch.autocast.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        channels: Sequence[int] = (64, 64, 128, 256, 512),
        *,
        embedding_size: int = 512,
        image_size: int = 112,
        dropout: float = 0.0,
        checkpointing: bool = False,
        zero_init_residual: bool = False,
        name: str = "iresnet",
    ) -> None:
        super().__init__(name, embedding_size, image_size, checkpointing, 8, dropout=dropout)
        self.conv1 = nn.Conv2d(3, channels[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.prelu = nn.PReLU(channels[0])
        stages = [
            nn.Sequential(*(Block(inputs if i == 0 else outputs, outputs, 2 if i == 0 else 1) for i in range(count)))
            for inputs, outputs, count in zip(channels[:-1], channels[1:], blocks, strict=True)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(channels[-1])
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels[-1] * math.ceil(image_size / 16) ** 2, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        self.features.weight.requires_grad_(False)
        normal_convolutions(self)
        for module in self.modules():
            if isinstance(module, Block) and zero_init_residual:
                nn.init.zeros_(module.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        blocks = chain(self.layer1, self.layer2, self.layer3, self.layer4)
        x = self.through(blocks, x)
        return in_float32(self.dropout(self.bn2(x)).flatten(1), self.fc, self.features)
