"""The generative class center (GCC): a few key embeddings of one identity, blended into one center by attention. O(B K D), no gradient.

Source: AttFC (arXiv 2503.06839), steps 4 and 5 of `attfc.heads.attfc`. Differs: softmax in float32.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from attfc.errors import UserError
from attfc.heads.head import unit_length

__all__ = ["attend", "generative_class_center"]


def generative_class_center(
    query_BD: Tensor,
    keys_BKD: Tensor,
    temperature: float = 1.0,
    *,
    stored_BD: Tensor | None = None,
    stored_B: Tensor | None = None,
) -> Tensor:
    """Blend K key embeddings of one identity into its unit-length class center.

    a = softmax_k(cos(query, key_k) / temperature);  center = normalize(sum_k a_k key_k)

    Args:
        query_BD: (B, D) float; any length; detached here, the weights carry no gradient.
        keys_BKD: (B, K, D) float on the same device; not normalized: longer keys weigh more.
        temperature: > 0, in units of cosine.
        stored_BD: (B, D) the identities' stored centers, one more candidate each, given the mean length of the
            sample's keys: at unit length it would vanish beside keys that are ten times as long.
        stored_B: (B,) bool, who has a stored center; the others attend over their keys alone.

    Returns:
        (B, D) float32 (float64 for float64 keys), unit length, no gradient.

    Raises:
        UserError: no keys, shapes that do not fit, temperature <= 0.

    Source: AttFC (arXiv 2503.06839), attention loader. Differs: softmax in float32.

    >>> keys = torch.tensor([[[2.0, 0.0], [2.0, 0.0]]])
    >>> generative_class_center(torch.tensor([[1.0, 0.0]]), keys)
    tensor([[1., 0.]])
    """
    return attend(query_BD, keys_BKD, temperature, stored_BD, stored_B)[0]


@torch.no_grad()
def attend(
    query_BD: Tensor, keys_BKD: Tensor, temperature: float, stored_BD: Tensor | None, stored_B: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the centers and the attention weights, (B, K) or (B, K + 1) with stored centers."""
    if keys_BKD.dim() != 3 or (keys_BKD.shape[0], keys_BKD.shape[2]) != tuple(query_BD.shape):
        batch, size = query_BD.shape
        raise UserError(
            f"keys have shape {tuple(keys_BKD.shape)}, the queries {tuple(query_BD.shape)}: "
            f"embed K images a query with the key encoder, shape ({batch}, K, {size})"
        )
    if keys_BKD.shape[1] == 0:
        raise UserError("keys_BKD holds no keys (K = 0): the attention loader needs keys_per_query >= 1")
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}: it divides cosines and must be above 0 (published: 1)")
    query_BD, _ = unit_length(query_BD)
    candidates_BKD = keys_BKD if keys_BKD.dtype == torch.float64 else keys_BKD.float()
    lengths_BK = candidates_BKD.norm(dim=2)
    if stored_BD is not None:
        stored_BD = normalize(stored_BD.to(candidates_BKD.dtype), dim=1) * lengths_BK.mean(dim=1, keepdim=True)
        candidates_BKD = torch.cat([candidates_BKD, stored_BD.unsqueeze(1)], dim=1)
        lengths_BK = candidates_BKD.norm(dim=2)
    # A product and a sum, not a matmul: neither autocast nor TF32 may round the cosines.
    cosines_BK = (query_BD.unsqueeze(1) * candidates_BKD).sum(dim=2) / lengths_BK.clamp_min(1e-12)
    logits_BK = cosines_BK / temperature
    if stored_BD is not None and stored_B is not None:
        absent_BK = torch.zeros_like(logits_BK, dtype=torch.bool)
        absent_BK[:, -1] = ~stored_B
        logits_BK = logits_BK.masked_fill(absent_BK, -math.inf)
    weights_BK = logits_BK.softmax(dim=1)
    return normalize((weights_BK.unsqueeze(2) * candidates_BKD).sum(dim=1), dim=1), weights_BK
