"""What must be so before any test imports a kernel."""

import os

import torch

# Triton decides when imported whether @triton.jit compiles or interprets. Without a CUDA device kernels are
# interpreted, on CPU tensors; with one, the same tests run what is compiled.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
torch.set_num_threads(1)
