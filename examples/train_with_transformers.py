"""Hugging Face Trainer: network and head as one model that returns its loss, a checkpoint at half time, and a Trainer that goes on from it.

$ python examples/train_with_transformers.py

The checkpoint's `model.safetensors` has what the head remembers of people too. Images come by position from the store, as the Trainer likes it.
"""

import tempfile
from pathlib import Path

import torch
import transformers

import attfc

SIZE = 32
people = attfc.open_store("synthetic:identities=60,images=8,seed=0")
strangers = attfc.open_store("synthetic:identities=40,images=4,seed=0,first=1000")


class Faces(torch.utils.data.Dataset):
    def __len__(self):
        return len(people)

    def __getitem__(self, position):
        pixels = people.images([position], SIZE).pixels[0]
        return {"pixels": torch.from_numpy(pixels).permute(2, 0, 1), "labels": int(people.labels(position))}


class Recognition(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = attfc.create_backbone("r6_tiny", embedding_size=64, image_size=SIZE)
        self.head = attfc.AttFC.default(64, identities=len(people.identities))
        self.augment = attfc.Augment()

    def forward(self, pixels, labels):
        seeds = torch.randint(2**62, labels.shape)  # of the mirror images; Trainer saves torch's generator
        return {"loss": self.head(self.backbone(self.augment(pixels, seeds)), labels)}


def train(folder, resume=None):
    arguments = transformers.TrainingArguments(
        output_dir=folder,
        max_steps=60,
        save_steps=30,
        per_device_train_batch_size=16,
        learning_rate=0.003,
        use_cpu=True,
        seed=0,
        logging_steps=60,
        report_to="none",
        disable_tqdm=True,
    )
    transformers.set_seed(0)
    model = Recognition()
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Faces())
    trainer.train(resume_from_checkpoint=resume)
    return model


with tempfile.TemporaryDirectory() as folder:
    whole = train(folder)
    resumed = train(folder, resume=str(Path(folder) / "checkpoint-30"))
accuracy = attfc.evaluate_store(whole.backbone, strangers).figures()["accuracy"]

assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
assert accuracy > 0.7, f"accuracy is {accuracy:.3f}; an untrained network has 0.64, chance is 0.5"
print(f"resumed after 30 of 60 steps: equal to the bit; {accuracy:.1%} of pairs of strangers told right")
