"""Attention as a few small products (bf16 on a processor), against the fused kernel in fp32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.metrics.training_memory import SavedBytes
from lightning_modules.networks.attention import attend, attention_context

CLOSE = {"atol": 0.03, "rtol": 0.03}  # of bf16, which has eight bits


def inputs(queries: int, keys: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(3, 2, queries, 16), (3, 2, keys, 16), (3, 2, keys, 16)]
    q, k, v = (torch.randn(shape, generator=draw).bfloat16().to(dtype).requires_grad_() for shape in shapes)
    return q, k, v


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_small_products_are_the_fused_kernel(masked: bool, scale: float | None) -> None:
    mask = (torch.arange(9) < torch.tensor([[9], [4], [1]]))[:, None, None] if masked else None
    small, exact = inputs(5, 9), inputs(5, 9, torch.float32)
    mine = attention_context(*small, mask, scale=scale)
    theirs = F.scaled_dot_product_attention(*exact, attn_mask=mask, scale=scale)
    assert "InProducts" in type(mine.grad_fn).__name__
    torch.testing.assert_close(mine.float(), theirs, **CLOSE)
    upstream = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1))
    mine.backward(upstream.bfloat16())
    theirs.backward(upstream)
    for one, other in zip(small, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad.float(), other.grad, atol=0.06, rtol=0.03)


def test_a_row_without_any_key_is_zero_by_both_routes() -> None:
    mask = (torch.arange(9) < torch.tensor([[9], [0], [1]]))[:, None, None]
    for dtype in (torch.bfloat16, torch.float32):
        q, k, v = inputs(5, 9, dtype)
        context = attention_context(q, k, v, mask)
        assert not context[1].any(), dtype
        context.float().square().sum().backward()
        for each in (q, k, v):
            assert each.grad is not None
            assert each.grad.isfinite().all(), dtype
            assert not each.grad[1].any(), dtype


def test_gradients_of_the_formula_are_exact() -> None:
    """In double precision nothing is rounded away, so a wrong term would show."""
    from lightning_modules.networks.attention import _InProducts

    q, k, v = (each.detach().requires_grad_() for each in inputs(4, 6, torch.float64))
    mask = (torch.arange(6) < torch.tensor([[6], [3], [2]]))[:, None, None]
    mine = torch.autograd.grad(_InProducts.apply(q, k, v, mask, 0.3).square().sum(), (q, k, v))
    theirs = torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, mask, scale=0.3).square().sum(), (q, k, v))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)  # the scores are fp32


def test_frozen_keys_get_no_gradient() -> None:
    q, k, v = inputs(5, 9)
    attention_context(q, k.detach(), v.detach()).float().sum().backward()
    assert [each.grad is None for each in (q, k, v)] == [False, True, True]


def test_it_keeps_no_more_than_the_fused_kernel() -> None:
    kept = []
    for way in (attention_context, F.scaled_dot_product_attention):
        q, k, v = inputs(40, 60)
        with SavedBytes() as saved:
            way(q, k, v).float().sum().backward()
        kept.append(saved.peak_bytes)
    assert 0 < kept[0] <= kept[1]


@pytest.mark.parametrize(
    ("queries", "keys", "dtype", "dropout"),
    [(5, 9, torch.float32, 0.0), (129, 129, torch.bfloat16, 0.0), (5, 9, torch.bfloat16, 0.5)],
)
def test_else_the_fused_kernel_runs(queries: int, keys: int, dtype: torch.dtype, dropout: float) -> None:
    q, k, v = inputs(queries, keys, dtype)
    assert "InProducts" not in type(attention_context(q, k, v, dropout=dropout).grad_fn).__name__


def test_attend_joins_the_heads() -> None:
    q, k, v = inputs(5, 9, torch.float32)
    apart = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attend(q, k, v), torch.cat(apart.unbind(1), -1))
