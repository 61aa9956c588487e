"""A bare PyTorch loop: the default head; train, judge on people the network never saw, save, and go on from the file.

$ python examples/bare_loop.py

The head has no parameters, so the optimizer gets those of the network alone. What the head remembers of people is in its `state_dict`.
"""

import tempfile
from pathlib import Path

import torch

import attfc

torch.manual_seed(0)
people = attfc.open_store("synthetic:identities=60,images=8,seed=0")  # or "faces/", with one folder per person
strangers = attfc.open_store("synthetic:identities=40,images=4,seed=0,first=1000")


def new_training():
    backbone = attfc.create_backbone("r6_tiny", embedding_size=64, image_size=32)
    head = attfc.AttFC.default(64, identities=len(people.identities))
    loader = attfc.AttentionLoader(people, batch_size=16, image_size=32)
    parameters = [*backbone.parameters(), *head.parameters()]  # some heads have centers to train
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
    return {"backbone": backbone, "head": head, "loader": loader, "optimizer": optimizer}


augment = attfc.Augment()  # flips at random, and maps pixels to -1 ... 1


def step(training, batch):
    embeddings = training["backbone"](augment(batch.queries, batch.seeds[:, 0]))
    loss = training["head"](embeddings, batch.labels)
    training["optimizer"].zero_grad()
    loss.backward()
    training["optimizer"].step()
    return loss.item()


def accuracy(backbone):
    return attfc.evaluate_store(backbone, strangers).figures()["accuracy"]


training = new_training()
before = accuracy(training["backbone"])
for _ in range(2):
    for batch in training["loader"]:
        step(training, batch)
after = accuracy(training["backbone"])

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "training.pt"
    torch.save({name: part.state_dict() for name, part in training.items()}, path)
    saved = torch.load(path)
resumed = new_training()
for name, part in resumed.items():
    part.load_state_dict(saved[name])
next_losses = [step(each, next(iter(each["loader"]))) for each in (training, resumed)]

assert next_losses[0] == next_losses[1], "the resumed training takes another step than the one that went on"
assert after > before + 0.05, f"accuracy went from {before:.3f} to {after:.3f}"
print(f"pairs of strangers told right: {before:.1%} untrained, {after:.1%} after two epochs; resumed to the bit")
