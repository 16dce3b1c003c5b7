"""What tests of the backend share: one thread, and phantoms and short runs made once."""

from __future__ import annotations

import pytest
from cli_runner import Material, Runs, make_material, make_runs


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The tensors are tiny, and tests often share a machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Phantoms as scans of several forms and as labelled sets; tests leave them as they are."""
    return make_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Runs:
    """One finished pretraining and a fine-tuning from it; tests leave them as they are."""
    return make_runs(tmp_path_factory.mktemp("runs"), material)
