"""What tests of the backend share: one thread, and phantoms and short runs made once."""

from __future__ import annotations

import os

import pytest
from cli_runner import Material, Runs, make_material, make_runs
from filelock import FileLock


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
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    # The first process that needs them makes them for all.
    with FileLock(folder / "runs.lock"):
        return make_runs(folder / "runs", material)
