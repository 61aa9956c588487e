"""Distillation by cosine: an embedding is drawn to the teacher's of the same image.

loss = weight x mean over the batch of 1 - cos(A z, t): z the student's embedding, t the teacher's; A is a linear map that is trained with the
student, and is there only where their sizes differ. Without it the student embeds into the teacher's own space. Cost: B D products, with A B D E.
Source: the angular distillation loss of ShrinkTeaNet (arXiv 1905.10620), which is 1 minus the same cosine, squared; here it is not, so that its
gradient does not vanish with the error.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

__all__ = ["TeacherLoss"]


class TeacherLoss(nn.Module):
    """`loss = TeacherLoss(D, E, weight)(embeddings_BD, targets_BE)`.

    Args:
        embedding_size: D, of the student. teacher_size: E, of the teacher.
        weight: factor of the mean.

    >>> TeacherLoss(2, 2, 32.0)(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]])).item()
    32.0
    """

    def __init__(self, embedding_size: int, teacher_size: int, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.map = nn.Identity() if embedding_size == teacher_size else nn.Linear(embedding_size, teacher_size, False)
        self._cosine = torch.zeros(())

    def forward(self, embeddings_BD: Tensor, targets_BE: Tensor) -> Tensor:
        """Return the weighted mean, a scalar with gradient to `embeddings_BD` and the map.

        Args:
            embeddings_BD: (B, D) float of any dtype and length; computed in float32.
            targets_BE: (B, E) float, any length; zeros for an image that the teacher has no embedding of: it counts 0.
        """
        cosine_B = (normalize(self.map(embeddings_BD.float()), dim=1) * normalize(targets_BE.float(), dim=1)).sum(dim=1)
        known_B = targets_BE.any(dim=1)
        self._cosine = cosine_B.detach().sum() / known_B.sum().clamp_min(1)
        return self.weight * torch.where(known_B, 1 - cosine_B, 0.0).mean()

    def statistics(self) -> dict[str, float]:
        """Return `teacher_cosine` of the last batch, the mean of those with a target; waits for the device."""
        return {"teacher_cosine": float(self._cosine)}
