"""What is asked of several methods alike."""

from __future__ import annotations

import pytest
import torch

from backend.methods.method import Method
from backend.views.crops import View, ViewSet


def rows_of(views: ViewSet, rows: slice) -> ViewSet:
    """Some samples of a batch."""
    kinds = (
        tuple(View(v.image[rows], v.affine[rows], v.keys[rows]) for v in kind) for kind in views
    )
    return ViewSet(*kinds)


def assert_parts_learn_as_the_whole(whole: Method, parts: Method, views: ViewSet) -> None:
    """A step in two parts gives the gradient of one; both methods have made that step then."""
    whole(views, 0.5).total.backward()
    for rows in (slice(0, 2), slice(2, 4)):
        (parts(rows_of(views, rows), 0.5).total / 2).backward()
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        if one.grad is not None:
            assert other.grad is not None
            assert torch.allclose(one.grad, other.grad, atol=1e-5, rtol=1e-3), name
    for method in (whole, parts):
        method.after_step(0.5)


def assert_half_precision_is_near(method: Method, views: ViewSet, *, rel: float) -> None:
    """Under autocast losses stay in fp32, near those without it, with finite gradients."""
    wanted = method(views, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = method(views, 0.5)
    assert found.total.dtype == torch.float32
    assert found.total.item() == pytest.approx(wanted.total.item(), rel=rel)
    for name, value in wanted.terms.items():
        assert found.terms[name].dtype == torch.float32
        assert float(found.terms[name]) == pytest.approx(float(value), rel=rel), name
    found.total.backward()
    assert all(bool(p.grad.isfinite().all()) for p in method.parameters() if p.grad is not None)


def assert_repeatable_and_near_in_half_precision(
    method: Method, views: ViewSet, *, rel: float
) -> None:
    """The same views give the same loss whatever was drawn before, and one near it in bf16."""
    wanted = method(views, 0.0).total
    torch.rand(10)
    assert torch.equal(method(views, 0.0).total, wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = method(views, 0.0).total
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted.item(), rel=rel)
