"""Any network of timm as a backbone: ``timm:NAME``, with the extra ``attfc[timm]``.

timm's pooled features go through a linear layer and BatchNorm to the embedding, both in float32. timm's networks expect each
its own mean and deviation of the colours (ImageNet's, mostly); ours take RGB in [-1, 1] everywhere, so the wrapper converts, with or
without pretrained weights: what a checkpoint means must not depend on how its network was first filled.
timm is imported when a network is built, not before.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from attfc.backbones.common import Backbone, in_float32
from attfc.errors import UserError, nearest

__all__ = ["TimmBackbone"]


class TimmBackbone(Backbone):
    """Embed faces with a network of timm.

    Args:
        name: ``timm:NAME``, as in ``timm:mobilenetv3_small_050`` or ``timm:vit_small_patch16_224``.
        embedding_size: length of the output.
        image_size: in pixels; None: 112, or timm's own size where the network is built for one (transformers).
        pretrained: start from timm's weights (timm downloads them).
        dropout: share of the pooled features set to zero in training, before the linear layer.
        drop_path: stochastic depth, where the network has it.
        checkpointing: timm's activation checkpointing, where the network has it (running statistics of BatchNorm move twice a
            step then).

    Input (B, 3, S, S) float, RGB in [-1, 1]; output (B, embedding_size) float32, also inside autocast.

    Raises:
        UserError: timm is missing, or knows no such network, or the network does not take an option.
    """

    def __init__(
        self,
        *,
        name: str,
        embedding_size: int = 512,
        image_size: int | None = None,
        pretrained: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        try:
            import timm
        except ImportError:
            raise UserError(f"backbone {name} needs timm: pip install 'attfc[timm]'") from None
        model = name.removeprefix("timm:")
        if not timm.is_model(model):
            raise UserError(f"timm {timm.__version__} has no network {model!r}{nearest(model, timm.list_models())}")
        config = timm.get_pretrained_cfg(model) or timm.models.PretrainedCfg()
        size = image_size or (config.input_size[-1] if config.fixed_input_size else 112)
        super().__init__(name, embedding_size, size, dropout=dropout, drop_path=drop_path)
        options: dict[str, Any] = {"num_classes": 0, "pretrained": pretrained}
        if drop_path:
            options["drop_path_rate"] = drop_path
        if config.fixed_input_size:
            options["img_size"] = size
        try:
            self.network: nn.Module = timm.create_model(model, **options)
            if checkpointing:
                cast(Any, self.network).set_grad_checkpointing(True)
        except (TypeError, AssertionError, ValueError) as fault:
            raise UserError(
                f"timm cannot build {model} with {options}, checkpointing={checkpointing}: {fault}"
            ) from fault
        features = int(getattr(self.network, "head_hidden_size", None) or cast(Any, self.network).num_features)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(features, embedding_size, bias=False)
        self.features = nn.BatchNorm1d(embedding_size)
        mean, deviation = torch.tensor(config.mean), torch.tensor(config.std)
        # x in [-1, 1] -> ((x + 1) / 2 - mean) / deviation
        self.register_buffer("scale", (0.5 / deviation).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", ((0.5 - mean) / deviation).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = cast(Tensor, self.scale), cast(Tensor, self.shift)
        x = self.network(x * scale.to(x.dtype) + shift.to(x.dtype))
        return in_float32(x, self.dropout, self.fc, self.features)
