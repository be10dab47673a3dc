"""Settings for tests of the models."""
from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small tensors, and pytest-xdist already uses the cores: threads that wait for each other only cost time."""
    torch.set_num_threads(1)
