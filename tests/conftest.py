"""Shared test settings: two threads at most, no tensors on an accelerator unless a test asks for one."""

import torch

torch.set_num_threads(2)
