"""Shared test settings: one thread, so that small tensors do not wait for each other on a busy machine."""

import torch

torch.set_num_threads(1)
