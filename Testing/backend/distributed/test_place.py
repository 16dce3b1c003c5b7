"""Which of several processes this one is, as launchers write it into the environment."""

from __future__ import annotations

import re

import pytest

from backend.engine.distributed import Place, place, share_of_device
from backend.errors import UserError

TORCHRUN = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}
SRUN = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, Place()),
        (TORCHRUN, Place(rank=3, size=4, local_rank=1)),
        (SRUN, Place(rank=9, size=16, local_rank=1)),
        # torchrun inside a task of srun: its own processes count.
        (SRUN | TORCHRUN, Place(rank=3, size=4, local_rank=1)),
        # The batch script of a job of 16 tasks is one process; only its steps have several.
        ({"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, Place()),
        ({"WORLD_SIZE": "1"}, Place()),
    ],
)
def test_a_place_is_read_from_torchrun_or_srun(environment: dict[str, str], found: Place) -> None:
    assert place(environment) == found
    assert found.leads == (found.rank == 0)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2, RANK=(missing), LOCAL_RANK=(missing)"),
        (TORCHRUN | {"RANK": "x"}, "WORLD_SIZE=4, RANK=x, LOCAL_RANK=1"),
        (TORCHRUN | {"WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        (TORCHRUN | {"RANK": "4"}, "RANK=4"),
        (TORCHRUN | {"RANK": "-1"}, "RANK=-1"),
        (TORCHRUN | {"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1"),
        (SRUN | {"SLURM_PROCID": "16"}, "SLURM_STEP_NUM_TASKS=16, SLURM_PROCID=16"),
    ],
)
def test_what_is_no_place_is_refused(environment: dict[str, str], named: str) -> None:
    with pytest.raises(UserError, match=f"{re.escape(named)}.* counts from 0; .*torchrun"):
        place(environment)


def test_one_device_is_not_shared() -> None:
    second = Place(rank=1, size=2, local_rank=1)
    assert share_of_device("cpu", second) == "cpu"
    assert share_of_device("cuda:1", Place()) == "cuda:1"
    for name in ("cuda:1", "mps"):
        with pytest.raises(UserError, match=f"{name} is one device, and there are 2 processes"):
            share_of_device(name, second)
