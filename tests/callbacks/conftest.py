"""Every test on one thread, so that bitwise comparisons compare the same arithmetic."""

import pytest
import torch
from callback_cases import fit, sinusoid_data, sinusoid_maml  # noqa: F401  (for tests that import them from here)


@pytest.fixture(autouse=True)
def _single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
