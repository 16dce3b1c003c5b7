from __future__ import annotations

import os
import subprocess
import sys

import pytest

from backend.tuning import tune_process

PAGE_FAULTS = """
import resource, sys
from backend.tuning import tune_process
if sys.argv[1] == "tuned":
    tune_process()
import torch
for _ in range(100):
    torch.empty(40 << 20, dtype=torch.uint8).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def page_faults(how: str) -> int:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PAGE_FAULTS, how],
        env=kept,
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout)


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    tune_process()
    assert os.environ["GOMP_SPINCOUNT"] == "77"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_memory_that_is_freed_is_not_asked_for_again_page_by_page() -> None:
    assert page_faults("tuned") < page_faults("plain") / 3
