"""BatchNorm on several ranks: statistics of each rank's own images (the default), or of the whole batch.

Default: a rank normalizes by the statistics of its share, so a rank's share should hold some 16 images or more. The running statistics, which
evaluation uses, are averaged over ranks after each step: one reduction of a few thousand numbers, and all ranks stay equal. (The average of
the variances leaves out the spread of the ranks' means.) Not taken: DistributedDataParallel's own way, the buffers of rank 0 for all.

`synchronize_batch_norm` (distributed.sync_batch_norm): statistics of the whole batch, so that R ranks train as one process does, for two
reductions per layer and pass. On GPUs it is torch's SyncBatchNorm; torch has none for the CPU, so there it is ours.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attfc.distributed import Ranks

__all__ = ["average_running_statistics", "keep_statistics", "synchronize_batch_norm"]


@torch.no_grad()
def average_running_statistics(modules: Iterable[nn.Module], ranks: Ranks) -> None:
    """Give the modules the mean over ranks of their floating buffers, in one reduction."""
    if ranks.size == 1:
        return
    buffers = [buffer for module in modules for buffer in module.buffers() if buffer.is_floating_point()]
    if not buffers:
        return
    means = ranks.mean(torch.cat([buffer.reshape(-1).float() for buffer in buffers]))
    parts = torch.split(means, [buffer.numel() for buffer in buffers])
    torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(parts, buffers, strict=True)])


def synchronize_batch_norm(module: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """Return the module with BatchNorm over the batch of all ranks; parameters, buffers and their names stay."""
    if ranks.size == 1:
        return module
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module, ranks.group)  # type: ignore[no-untyped-call]
        return converted
    if isinstance(module, _BatchNorm):
        return RankBatchNorm(module, ranks)
    for name, child in module.named_children():
        setattr(module, name, synchronize_batch_norm(child, ranks, device))
    return module


def keep_statistics(module: nn.Module) -> None:
    """Set the BatchNorm layers of a module to eval mode; `module.train()` would undo it."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm | RankBatchNorm):
            layer.eval()


class RankBatchNorm(nn.Module):
    """BatchNorm over the images of all ranks, on any device; shares the parameters and buffers of the layer it replaces.

    mean and variance come from the sums of x and of (x - mean)^2 over all ranks, which are differentiable. In eval mode it does what
    the layer does.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, layer: _BatchNorm, ranks: Ranks) -> None:
        super().__init__()
        assert layer.momentum is not None
        assert layer.track_running_stats
        self.eps, self.momentum, self.ranks = layer.eps, layer.momentum, ranks
        self.training = layer.training
        self.register_parameter("weight", layer.weight)
        self.register_parameter("bias", layer.bias)
        for name, buffer in layer.named_buffers(recurse=False):
            self.register_buffer(name, buffer)

    def forward(self, images: Tensor) -> Tensor:
        """Normalize each channel over the batch of all ranks (training) or by the running statistics (eval)."""
        if not self.training:
            return nn.functional.batch_norm(
                images, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        wide = images if images.dtype == torch.float64 else images.float()
        axes = [axis for axis in range(images.dim()) if axis != 1]
        shape = [1, -1, *[1] * (images.dim() - 2)]
        count = images.numel() // images.shape[1] * self.ranks.size
        mean = self.ranks.sum(wide.sum(axes)) / count
        centred = wide - mean.view(shape)
        variance = self.ranks.sum(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((variance * (count / max(count - 1, 1))).to(self.running_var.dtype), self.momentum)
        normal = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            normal = normal * self.weight.to(wide.dtype).view(shape)
        if self.bias is not None:
            normal = normal + self.bias.to(wide.dtype).view(shape)
        return normal.to(images.dtype)
