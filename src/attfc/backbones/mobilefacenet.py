"""MobileFaceNet: the mobile backbone, `mbf` (0.44 GMACs) and `mbf_large` (1.8 GMACs).

Bottlenecks of a 1x1 convolution, a 3x3 depthwise one and a linear 1x1 one, PReLU between them; the first convolution and three
of the bottlenecks halve the map. The last map (7 x 7 for 112 x 112) is summed by a depthwise convolution of its own size, which
lets the network weigh the middle of a face more than its corners. Any image size that is a multiple of 8.

Source: MobileFaceNets (arXiv 1804.07573); widths, depths and state names of arcface_torch, so its weights load with strict=True.
"""

import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from attfc.backbones.common import Backbone, in_float32

__all__ = ["MOBILEFACENET_SHAPES", "MobileFaceNet"]

# name -> (blocks of each stage, width multiplier)
MOBILEFACENET_SHAPES: dict[str, tuple[tuple[int, int, int, int], int]] = {
    "mbf": ((1, 4, 6, 2), 2),
    "mbf_large": ((2, 8, 12, 4), 4),
}


class Layers(nn.Module):
    """Modules in a row under the name `layers`; with `residual`, their input is added to their output."""

    def __init__(self, *layers: nn.Module, residual: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        output = cast(Tensor, self.layers(x))
        return x + output if self.residual else output


def _convolution(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, padding: int = 0, groups: int = 1, linear: bool = False
) -> Layers:
    """Convolution and BatchNorm, then PReLU unless `linear`."""
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return Layers(*layers) if linear else Layers(*layers, nn.PReLU(outputs))


def _bottleneck(inputs: int, outputs: int, middle: int, stride: int = 1, residual: bool = False) -> Layers:
    return Layers(
        _convolution(inputs, middle),
        _convolution(middle, middle, 3, stride, 1, groups=middle),
        _convolution(middle, outputs, linear=True),
        residual=residual,
    )


def _residual_stage(channels: int, blocks: int, middle: int) -> Layers:
    return Layers(*(_bottleneck(channels, channels, middle, residual=True) for _ in range(blocks)))


class MobileFaceNet(Backbone):
    """Embed faces with a MobileFaceNet.

    Args:
        blocks: residual bottlenecks of each of the four stages; 1 in the first makes it a grouped convolution.
        scale: width multiplier, in units of 64 channels.
        embedding_size: length of the output.
        image_size: height and width of the input in pixels, a multiple of 8.
        dropout: share of the pooled features set to zero in training, before the linear layer.
        checkpointing: compute the stages again in backward instead of keeping their activations; same results.
        name: for messages.

    Input (B, 3, S, S) float, RGB in [-1, 1]; output (B, embedding_size) float32, also inside autocast.

    Initial values: convolutions Kaiming normal by fan out, BN 1 and 0, PReLU 0.25, linear layer torch's default.

    Raises:
        UserError: an image size or dropout that does not fit.

    Source: MobileFaceNets (arXiv 1804.07573) and the state names of arcface_torch. Differs: no fp16 argument, use
    torch.autocast; the pooling convolution follows the image size.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        scale: int,
        *,
        embedding_size: int = 512,
        image_size: int = 112,
        dropout: float = 0.0,
        checkpointing: bool = False,
        name: str = "mobilefacenet",
    ) -> None:
        super().__init__(name, embedding_size, image_size, checkpointing, 8, dropout=dropout)
        narrow, wide = 64 * scale, 128 * scale
        self.layers = nn.ModuleList(
            [
                _convolution(3, narrow, 3, 2, 1),
                _convolution(narrow, narrow, 3, 1, 1, groups=64)
                if blocks[0] == 1
                else _residual_stage(narrow, blocks[0], 128),
                _bottleneck(narrow, narrow, 128, stride=2),
                _residual_stage(narrow, blocks[1], 128),
                _bottleneck(narrow, wide, 256, stride=2),
                _residual_stage(wide, blocks[2], 256),
                _bottleneck(wide, wide, 512, stride=2),
                _residual_stage(wide, blocks[3], 256),
            ]
        )
        self.conv_sep = _convolution(wide, 512)
        self.features = Layers(
            _convolution(512, 512, math.ceil(image_size / 16), groups=512, linear=True),
            nn.Flatten(),
            nn.Linear(512, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size),
        )
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_sep(self.through(self.layers, x))
        pool, flatten, linear, norm = self.features.layers
        return in_float32(x, pool, flatten, self.dropout, linear, norm)
