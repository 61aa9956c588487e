"""`container_softmax` in a loss of your own: a memory bank of any vectors with labels as negatives, never a matrix of all logits.

$ python examples/loss_of_your_own.py

The rows carry no gradient, so forward streams them block by block and backward multiplies what forward kept. Here: a queue of the last embeddings.
"""

import torch
from torch.nn.functional import normalize

import attfc

torch.manual_seed(0)
CLASSES, DIMENSIONS, QUEUE, SCALE = 50, 16, 512, 16.0
means = normalize(torch.randn(CLASSES, 32), dim=1)


def draw(count):
    labels = torch.randint(CLASSES, (count,))
    return means[labels] + 0.15 * torch.randn(count, 32), means[labels] + 0.15 * torch.randn(count, 32), labels


class QueueLoss(torch.nn.Module):
    """An image's positive is another view of it; its negatives are the queued embeddings of other classes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("rows", torch.zeros(QUEUE, DIMENSIONS))
        self.register_buffer("labels", torch.full((QUEUE,), -1))  # -1: empty, nobody's negative
        self.margin = attfc.CosFace(SCALE, 0.2)

    def forward(self, query, view, labels):
        query, view = normalize(query, dim=1), normalize(view, dim=1).detach()
        positive = self.margin((query * view).sum(dim=1))
        loss = attfc.container_softmax(query, positive, self.rows, self.labels, labels, SCALE)
        self.rows = torch.cat([view, self.rows])[:QUEUE]
        self.labels = torch.cat([labels, self.labels])[:QUEUE]
        return loss.mean()


network = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, DIMENSIONS))
criterion = QueueLoss()
optimizer = torch.optim.AdamW(network.parameters(), lr=0.002)
losses = []
for _ in range(300):
    first, second, labels = draw(64)
    loss = criterion(network(first), network(second), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

# The same number the slow way, from all logits at once.
first, second, labels = draw(8)
query, view = (normalize(network(x), dim=1).detach() for x in (first, second))
positive = criterion.margin((query * view).sum(dim=1))
fast = attfc.container_softmax(query, positive, criterion.rows, criterion.labels, labels, SCALE)
logits = SCALE * (query @ criterion.rows.T)
logits[labels[:, None] == criterion.labels] = -torch.inf
slow = torch.nn.functional.cross_entropy(
    torch.cat([SCALE * positive[:, None], logits], dim=1), torch.zeros(8).long(), reduction="none"
)

early, late = sum(losses[10:30]) / 20, sum(losses[-20:]) / 20
torch.testing.assert_close(fast, slow)
assert late < early - 0.5, f"the loss went from {early:.2f} to {late:.2f}"
print(f"loss {early:.2f} at first, {late:.2f} after 300 steps; equal to the dense softmax")
