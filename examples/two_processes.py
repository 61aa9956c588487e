"""Two processes with Accelerate: each holds half of the centers, and a file with all of them, which one process opens.

$ torchrun --standalone --nproc-per-node=2 examples/two_processes.py

Build the head after Accelerator(), which starts the process group, and leave it out of `prepare`: there is nothing of it to average.
"""

import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator

import attfc
from attfc.distributed import ALONE

accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
people = attfc.open_store("synthetic:identities=60,images=8,seed=0")
strangers = attfc.open_store("synthetic:identities=40,images=4,seed=0,first=1000")

plain = attfc.create_backbone("r6_tiny", embedding_size=64, image_size=32)
head = attfc.AttFC.default(64, identities=len(people.identities)).to(accelerator.device)
rank, ranks = accelerator.process_index, accelerator.num_processes
loader = attfc.AttentionLoader(people, batch_size=8, image_size=32, rank=rank, ranks=ranks)  # 8 on each
augment = attfc.Augment()
parameters = [*plain.parameters(), *head.parameters()]  # some heads have centers to train
optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
backbone, optimizer = accelerator.prepare(plain, optimizer)

losses = []
for batch in loader.batches(until_step=60):
    batch = batch.to(accelerator.device)
    loss = head(backbone(augment(batch.queries, batch.seeds[:, 0])), batch.labels)  # over the centers of both
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
    losses.append(accelerator.reduce(loss.detach(), "mean").item())

saved = head.full_state_dict()  # both call it
if accelerator.is_main_process:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head.pt"
        torch.save(saved, path)
        opened = attfc.AttFC.default(64, identities=len(people.identities), ranks=ALONE)  # of this process alone
        opened.load_state_dict(torch.load(path))
    accuracy = attfc.evaluate_store(plain, strangers).figures()["accuracy"]
    assert ranks == 2, "start it with torchrun, as above"
    assert opened.table.seen.all(), "somebody has no center"
    assert len(head.table.rows) == 30
    assert torch.equal(opened.table.rows[:30], head.table.rows)
    assert accuracy > 0.7, f"accuracy is {accuracy:.3f}; an untrained network has 0.64, chance is 0.5"
    print(f"{ranks} processes with 30 centers each, saved as 60; {accuracy:.1%} of pairs of strangers told right")
accelerator.end_training()
