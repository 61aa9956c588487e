"""A network of timm: any of its names as the backbone, trained with the default head and saved as a model that attfc opens again.

$ python examples/timm_backbone.py

`timm:NAME` works in `attfc train` too: `attfc train faces/ backbone=timm:resnet18`.
`pretrained=True` begins from timm's weights, which timm downloads.
"""

import tempfile

import torch

import attfc

torch.manual_seed(0)
people = attfc.open_store("synthetic:identities=60,images=8,seed=0")
strangers = attfc.open_store("synthetic:identities=40,images=4,seed=0,first=1000")
backbone = attfc.create_backbone(
    "timm:test_resnet", embedding_size=64, image_size=32
)  # timm's smallest, made for tests
head = attfc.AttFC.default(64, identities=len(people.identities))
loader, augment = attfc.AttentionLoader(people, batch_size=16, image_size=32), attfc.Augment()
parameters = [*backbone.parameters(), *head.parameters()]  # some heads have centers to train
optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)

for batch in loader.batches(until_step=60):
    loss = head(backbone(augment(batch.queries, batch.seeds[:, 0])), batch.labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

accuracy = attfc.evaluate_store(backbone, strangers).figures()["accuracy"]
faces = strangers.images([0, 1, 4], 32).pixels  # two images of one person, one of another
with tempfile.TemporaryDirectory() as folder:
    model = attfc.load(attfc.save_model(folder, backbone), device="cpu")
cosines = model.similarity(faces, faces)

assert accuracy > 0.65, f"accuracy is {accuracy:.3f}; the untrained network has 0.58, chance is 0.5"
assert cosines[0, 1] > cosines[0, 2], "another person is nearer than the same person"
print(f"{model.facts.network} tells {accuracy:.1%} of pairs of strangers right; saved and opened again")
