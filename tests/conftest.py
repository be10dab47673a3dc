"""Settings for all tests."""
from __future__ import annotations

import os

# Small tensors, and pytest-xdist already uses the cores: OpenMP's threads of two workers would only spin and wait for each other. Set
# before anything imports PyTorch or NumPy, and handed on to every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
