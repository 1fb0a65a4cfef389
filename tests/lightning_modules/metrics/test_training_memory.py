"""Parameters, saved activations, gradients and optimizer state against counts by hand on a tiny MLP."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_modules.adapters.tuning import count_parameters
from lightning_modules.metrics.training_memory import SavedBytes, gradient_bytes, optimizer_state_bytes

B, D, H = 3, 4, 8
F32 = 4


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, H), nn.Sigmoid(), nn.Linear(H, D))


def test_parameters() -> None:
    model = mlp()
    total = D * H + H + H * D + D
    counts = count_parameters(model)
    assert (counts.trainable, counts.total, counts.percent) == (total, total, 100.0)
    model[0].requires_grad_(False)
    counts = count_parameters(model)
    assert (counts.trainable, counts.total) == (H * D + D, total)
    assert counts.percent == pytest.approx(100 * (H * D + D) / total)
    shared = nn.ModuleList([model, model[2]])  # the same layer in two places
    assert count_parameters(shared).total == total
    empty = count_parameters(nn.ReLU())
    assert (empty.trainable, empty.total, empty.percent) == (0, 0, 0.0)


def test_saved_bytes_of_a_full_mlp() -> None:
    model = mlp()
    x = torch.randn(B, D)
    with SavedBytes(exclude=model) as saved:
        loss = model(x).sum()
        # Linear 0 saves its input; the sigmoid its output, which Linear 2 saves as its input: one storage. Weights do not
        # count.
        assert saved.live_bytes == saved.peak_bytes == (B * D + B * H) * F32
        loss.backward()
    assert saved.live_bytes == 0
    assert saved.peak_bytes == (B * D + B * H) * F32
    assert gradient_bytes(model.parameters()) == count_parameters(model).total * F32


def test_parameters_count_when_they_are_not_excluded() -> None:
    model = mlp()
    with SavedBytes() as saved:
        model(torch.randn(B, D)).sum()
    assert saved.peak_bytes == (B * D + B * H + H * D) * F32  # the second weight is needed for the gradient of its input


def test_frozen_bottom_saves_less() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    with SavedBytes(exclude=model) as saved:
        model(torch.randn(B, D)).sum().backward()
    assert saved.peak_bytes == B * H * F32  # only the input of the trained layer
    assert gradient_bytes(model.parameters()) == (H * D + D) * F32


class Sliced(nn.Module):
    """As VeRA: a layer takes a part of a matrix that all of them share."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shared", torch.randn(2 * H, 2 * D))

    def forward(self, x: Tensor) -> Tensor:
        shared: Tensor = self.get_buffer("shared")
        return nn.functional.linear(x, shared[:H, :D])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", ["plain", "sliced"])
def test_what_is_made_of_weights_is_known_apart_and_does_not_grow_with_the_batch(kind: str, frozen: bool) -> None:
    """Autocast's bf16 weights, where as many rows as a weight has sides make activations of a weight's shape."""
    model = nn.Sequential(Sliced(), nn.Sigmoid(), nn.Linear(H, D)) if kind == "sliced" else mlp()
    model.requires_grad_(not frozen)
    found = []
    for rows in (D, H):
        x = torch.randn(rows, D, requires_grad=True)  # of a layer below that trains
        with SavedBytes(exclude=model) as saved, torch.autocast("cpu", torch.bfloat16):
            model(x).sum().backward()
        assert saved.live_bytes == 0
        found.append((saved.peak_bytes - saved.peak_copy_bytes, saved.peak_copy_bytes))
    (first, copies), (second, again) = found
    assert copies == again == 2 * D * H * 2  # both layers' weights, in bf16
    assert second == H // D * first > 0


def test_rounds_are_not_added_up_and_nothing_leaks() -> None:
    model = mlp()
    with SavedBytes(exclude=model) as saved:
        for _ in range(3):
            model(torch.randn(B, D)).sum().backward()
        assert saved.peak_bytes == (B * D + B * H) * F32
        first, second = model(torch.randn(B, D)), model(torch.randn(B, D))  # two graphs at once
        assert saved.live_bytes == saved.peak_bytes == 2 * (B * D + B * H) * F32
        gc.disable()
        del first, second  # never run backward: freed by reference counts alone, no cycles
        gc.enable()
        assert saved.live_bytes == 0


def test_views_count_once_and_buffers_never() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.ones(B, D))

        def forward(self, x: Tensor) -> Tensor:
            return (x[:, :2] * x[:, 2:]).sum() + (x * self.mask).sum()

    model = Twice()
    with SavedBytes(exclude=model) as saved:
        model(torch.randn(B, D, requires_grad=True))
    assert saved.peak_bytes == B * D * F32


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant: bool) -> None:
    blocks = nn.ModuleList(mlp() for _ in range(3))
    x = torch.randn(B, D, requires_grad=True)

    def run(checkpointed: bool) -> tuple[int, int, Tensor | None]:
        x.grad = None
        with SavedBytes(exclude=blocks) as saved:
            y = x
            for block in blocks:
                y = checkpoint(block, y, use_reentrant=reentrant) if checkpointed else block(y)
            after_forward = saved.live_bytes
            y.sum().backward()
        assert saved.live_bytes == 0
        return after_forward, saved.peak_bytes, x.grad

    plain, plain_peak, plain_gradient = run(False)
    kept, peak, gradient = run(True)
    assert plain == plain_peak == 3 * (B * D + B * H) * F32
    assert kept == 3 * B * D * F32  # the segments' inputs
    # While the last segment runs backward its hidden activation is there as well; the non-reentrant variant hides it.
    assert peak == kept + (B * H * F32 if reentrant else 0)
    assert gradient is not None
    assert torch.equal(gradient, plain_gradient)


def test_gradients_are_bit_equal_under_the_hooks() -> None:
    model, x = mlp(), torch.randn(B, D)
    model(x).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with SavedBytes(exclude=model):
        model(x).square().sum().backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(model.parameters(), expected, strict=True))


def test_backward_after_leaving() -> None:
    model = mlp()
    with SavedBytes(exclude=model) as saved:
        loss = model(torch.randn(B, D)).sum()
    loss.backward()
    assert saved.live_bytes == 0


def test_optimizer_state() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    assert optimizer_state_bytes(optimizer) == 0
    model(torch.randn(B, D)).sum().backward()
    optimizer.step()
    assert optimizer_state_bytes(optimizer) == 2 * (H * D + D) * F32 + 2 * F32  # two moments; a step counter a tensor
    assert optimizer_state_bytes(torch.optim.SGD(model.parameters())) == 0
