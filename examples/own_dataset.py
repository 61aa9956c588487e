"""Your own dataset: a torch Dataset of images and names in a loop of your own, and the same images as a folder for the loader of attfc.

$ python examples/own_dataset.py

A head needs two things of a dataset: labels that count from 0 without gaps, int64, and how many there are. Images are RGB in [-1, 1].
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import attfc

torch.manual_seed(0)
rendered = attfc.open_store("synthetic:identities=60,images=8,seed=0")
rows = [
    (rendered.identity_name(int(rendered.labels(i))), rendered.images([i], 32).pixels[0]) for i in range(len(rendered))
]


class YourFaces(torch.utils.data.Dataset):
    """Whatever you have: here a list of (name, uint8 RGB array)."""

    def __init__(self, rows):
        self.rows = rows
        self.label_of = {name: label for label, name in enumerate(sorted({name for name, _ in rows}))}

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        name, pixels = self.rows[number]
        return torch.from_numpy(pixels).permute(2, 0, 1), self.label_of[name]


faces = YourFaces(rows)
backbone = attfc.create_backbone("r6_tiny", embedding_size=64, image_size=32)
head = attfc.AttFC.default(64, identities=len(faces.label_of))
augment = attfc.Augment()
parameters = [*backbone.parameters(), *head.parameters()]  # some heads have centers to train
optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
for _ in range(2):
    for images, labels in torch.utils.data.DataLoader(faces, batch_size=16, shuffle=True, drop_last=True):
        seeds = torch.randint(2**62, labels.shape)
        loss = head(backbone(augment(images, seeds)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

with tempfile.TemporaryDirectory() as folder:  # one folder per person: what every command of attfc takes
    for number, (name, pixels) in enumerate(rows):
        path = Path(folder, name, f"{number:04}.png")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    store = attfc.open_store(folder)
    batch = next(iter(attfc.AttentionLoader(store, batch_size=16, image_size=32)))
    read = store.images(np.arange(len(store)), 32).pixels

strangers = attfc.open_store("synthetic:identities=40,images=4,seed=0,first=1000")
accuracy = attfc.evaluate_store(backbone, strangers).figures()["accuracy"]
assert (len(store), len(store.identities)) == (len(faces), len(faces.label_of))
assert batch.queries.shape == (16, 3, 32, 32)
assert sorted(map(bytes, read)) == sorted(bytes(pixels) for _, pixels in rows)  # PNG loses nothing
assert accuracy > 0.7, f"accuracy is {accuracy:.3f}; an untrained network has 0.64, chance is 0.5"
print(f"{len(faces)} images of {len(faces.label_of)} names; {accuracy:.1%} of pairs of strangers told right")
