"""Query encoder and key encoder: the trained backbone beside its exponential moving average.

theta_k <- m theta_k + (1 - m) theta_q, m = 0.999 (AttFC, arXiv 2503.06839; MoCo, arXiv 1911.05722). Cost: one more copy of the backbone
in memory (no gradient, no optimizer state) and one foreach pass over it per step; for a head without keys, nothing. Not taken:
`torch.optim.swa_utils.AveragedModel`, which knows no schedule and averages either every buffer or none.

`schedule="ramp"`: m = min(momentum, (1 + t) / (10 + t)) at step t: the average remembers a ninth of the steps taken, up to 1 / (1 - momentum)
of them (0.999 is reached at step 8,990). A constant 0.999 still holds 37 % of the untrained network after 1,000 steps.

Buffers (`batch_norm`):
- "batch" (published): the key encoder normalizes by the statistics of the key batch; its buffers are its own, never averaged.
- "averaged": the key encoder is in eval mode (dropout and the like are off), floating buffers are averaged, the others copied. Running
  statistics start at mean 0, variance 1, which say nothing about the network: under a constant 0.999 they would spoil the first thousands of
  steps. So buffers always follow the ramp: their start fades as t^-9, within about 20 steps, whatever the parameters do.
"""

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attfc.errors import UserError
from attfc.training.batch_norm import keep_statistics

__all__ = ["MomentumPair", "momentum_at"]

# Shapes: B batch, K keys of a query, D embedding size, S image side.


def momentum_at(step: int, momentum: float, schedule: Literal["constant", "ramp"] = "constant") -> float:
    """Return the momentum of update number `step` (the first is 0).

    constant: momentum;  ramp: min(momentum, (1 + step) / (10 + step))

    >>> momentum_at(0, 0.999, "ramp"), momentum_at(90, 0.999, "ramp"), momentum_at(10**6, 0.999, "ramp")
    (0.1, 0.91, 0.999)
    """
    return momentum if schedule == "constant" else min(momentum, (1 + step) / (10 + step))


class MomentumPair(nn.Module):
    """The query encoder, which is `backbone` itself, and its slowly moving copy, the key encoder.

    Args:
        backbone: (N, 3, S, S) float -> (N, D) float. Keep its parameters in float32 (mixed precision by autocast): in bfloat16 a step of
            0.001 of the way rounds to nothing.
        momentum: in [0, 1], per step; 0: the key encoder's parameters are those of the current backbone.
        schedule: "constant" | "ramp", see the file's head.
        batch_norm: "batch" | "averaged", see the file's head.
        keys: whether the head takes keys (``head.keys_per_query > 0``); False: no copy is made.
        keep_statistics: BatchNorm of both encoders stays as it is: it normalizes by its running statistics and never changes them.

    Attributes:
        query: `backbone`, not a copy. Compile in place (``pair.query.compile()``).
        key: the copy; its parameters take no gradient. None without keys.
        step: updates done; part of the state_dict.

    A state_dict with a key encoder loads into a pair without one, which ignores it. One without loads into a pair with one, whose key encoder
    becomes a copy of the loaded query encoder.

    Raises:
        UserError: an option out of its range.

    >>> pair = MomentumPair(nn.Linear(1, 1, bias=False), momentum=0.75)
    >>> with torch.no_grad():
    ...     _ = pair.key.weight.fill_(4.0), pair.query.weight.fill_(8.0)
    >>> pair.update()
    >>> pair.key.weight
    Parameter containing:
    tensor([[5.]])
    """

    def __init__(
        self,
        backbone: nn.Module,
        momentum: float = 0.999,
        *,
        schedule: Literal["constant", "ramp"] = "constant",
        batch_norm: Literal["batch", "averaged"] = "batch",
        keys: bool = True,
        keep_statistics: bool = False,
    ) -> None:
        super().__init__()
        if not 0.0 <= momentum <= 1.0:
            raise UserError(f"key encoder momentum {momentum} is outside [0, 1]: use 0.999, or 0 for no average")
        if schedule not in ("constant", "ramp"):
            raise UserError(f"key encoder momentum schedule {schedule!r} is unknown: use 'constant' or 'ramp'")
        if batch_norm not in ("batch", "averaged"):
            raise UserError(f"key encoder batch_norm {batch_norm!r} is unknown: use 'batch' or 'averaged'")
        self.momentum, self.schedule, self.batch_norm = momentum, schedule, batch_norm
        self.keep_statistics = keep_statistics
        self.step = 0
        self.query = backbone
        self.key: nn.Module | None = copy.deepcopy(backbone).requires_grad_(False) if keys else None
        self.train(backbone.training)

    def train(self, mode: bool = True) -> "MomentumPair":
        """Set both encoders' mode; the key encoder of an averaged pair stays in eval mode, and so does BatchNorm that is kept."""
        super().train(mode)
        if self.batch_norm == "averaged" and self.key is not None:
            self.key.eval()
        if self.keep_statistics:
            keep_statistics(self)
        return self

    # A compiled loop would compile anew at each step number. torch.compiler.disable imports dynamo, 4 s, where it is written; this, when called.
    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def update(self, step: int | None = None) -> None:
        """Move the key encoder towards the query encoder; call once per step, before the keys are embedded.

        Args:
            step: number of this update (for the ramp); default: the pair's own count, which a state_dict keeps.
        """
        step, key = self.step if step is None else step, self._key_encoder()
        parameters = zip(key.parameters(), self.query.parameters(), strict=True)
        _average(list(parameters), momentum_at(step, self.momentum, self.schedule))
        if self.batch_norm == "averaged":
            buffers = list(zip(key.buffers(), self.query.buffers(), strict=True))
            floating = [pair for pair in buffers if pair[0].is_floating_point()]
            _average(floating, momentum_at(step, self.momentum, "ramp"))
            for average, value in buffers:
                if not average.is_floating_point():
                    average.copy_(value)
        self.step = step + 1

    @torch.no_grad()
    def embed_keys(self, keys_BKCSS: Tensor) -> Tensor:
        """Embed all keys in one pass of the key encoder.

        Args:
            keys_BKCSS: (B, K, 3, S, S) float on the encoder's device; a channels-last layout of the images is kept.

        Returns:
            (B, K, D), the encoder's output type, not normalized, no gradient; K = 0 gives (B, 0, D).
        """
        B, K = keys_BKCSS.shape[:2]
        if B * K == 0:
            return keys_BKCSS.new_empty(B, K, int(getattr(self.query, "embedding_size", 0)))
        embeddings_ND: Tensor = self._key_encoder()(keys_BKCSS.flatten(0, 1))
        return embeddings_ND.view(B, K, *embeddings_ND.shape[1:])

    def _key_encoder(self) -> nn.Module:
        if self.key is None:
            raise UserError(
                "this pair has no key encoder, and the head takes keys: make it with MomentumPair(backbone, keys=True)"
            )
        return self.key

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Make up for a key encoder that one of the two does not have; torch calls it before those of the encoders."""
        query, key = f"{prefix}query.", f"{prefix}key."
        saved = [name for name in state_dict if name.startswith(key)]
        if self.key is None:
            for name in saved:
                del state_dict[name]
        elif not saved:
            copies = {key + name.removeprefix(query): state_dict[name] for name in state_dict if name.startswith(query)}
            state_dict.update(copies)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def get_extra_state(self) -> Tensor:
        """Return the count of updates, so that a resumed ramp goes on where it stood."""
        return torch.tensor(self.step, dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take up a saved count of updates."""
        self.step = int(state)


def _average(pairs: list[tuple[Tensor, Tensor]], momentum: float) -> None:
    """Move the first of each pair towards the second."""
    averages, values = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if not pairs:
        return
    if momentum == 0.0:  # an exact copy, even of or over infinities
        torch._foreach_copy_(averages, values)
    else:
        torch._foreach_lerp_(averages, values, 1.0 - momentum)
