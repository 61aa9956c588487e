"""PyTorch Lightning: the head in a LightningModule, a checkpoint in the middle of an epoch, a second Trainer that goes on from it.

$ python examples/train_with_lightning.py

Lightning saves what the head remembers with the module, because the head is a part of it. The loader
knows its position in the data, and a DataModule saves it.
"""

import tempfile
from pathlib import Path

import lightning
import torch

import attfc

people = attfc.open_store("synthetic:identities=60,images=8,seed=0")
strangers = attfc.open_store("synthetic:identities=40,images=4,seed=0,first=1000")


class Faces(lightning.LightningDataModule):
    def __init__(self):
        super().__init__()
        self.loader = attfc.AttentionLoader(people, batch_size=16, image_size=32)

    def train_dataloader(self):
        return self.loader

    def state_dict(self):
        return self.loader.state_dict()

    def load_state_dict(self, state):
        self.loader.load_state_dict(state)


class Recognition(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = attfc.create_backbone("r6_tiny", embedding_size=64, image_size=32)
        self.head = attfc.AttFC.default(64, identities=len(people.identities))
        self.augment = attfc.Augment()
        self.losses = {}

    def training_step(self, batch, number):
        loss = self.head(self.backbone(self.augment(batch.queries, batch.seeds[:, 0])), batch.labels)
        self.losses[self.global_step] = loss.item()
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def train(steps, save=None, start=None):
    lightning.seed_everything(0, verbose=False)
    module = Recognition()
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=Faces(), ckpt_path=start)
    if save:
        trainer.save_checkpoint(save)
    return module


with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "training.ckpt"
    train(steps=40, save=path)
    resumed = train(steps=50, start=path)
whole = train(steps=50)
accuracy = attfc.evaluate_store(whole.backbone, strangers).figures()["accuracy"]

assert resumed.losses == {step: loss for step, loss in whole.losses.items() if step >= 40}, "the resumed run differs"
assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
assert accuracy > 0.7, f"accuracy is {accuracy:.3f}; an untrained network has 0.64, chance is 0.5"
print(f"steps 41 to 50, resumed and in one go: equal to the bit; {accuracy:.1%} of pairs of strangers told right")
