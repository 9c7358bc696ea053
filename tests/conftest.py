"""One thread: the tensors are small, and pytest-xdist runs the processes side by side."""

import torch

torch.set_num_threads(1)
