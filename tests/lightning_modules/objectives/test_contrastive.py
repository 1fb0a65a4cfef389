"""Contrastive loss and gradient caching: parity with the official code, a naive twin, and one process against two."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
from forks import two_ranks
from safetensors.torch import load_file, save_file
from two_processes import Pair

from datamodules.records import ImageBatch, Regions
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.adapters.tuning import set_mode, set_tuning
from lightning_modules.objectives.contrastive import ContrastiveLoss, gather
from lightning_modules.objectives.gradient_cache import encode_in_chunks, slice_batch
from lightning_modules.objectives.sigmoid import SigmoidLoss

ROOT = Path(__file__).parents[3]
RECORDING = ROOT / "tests" / "recordings" / "mwa" / "itc_gather.safetensors"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two_processes")
    inputs = {name: value for name, value in load_file(RECORDING).items() if name.startswith("inputs/")}
    save_file({**inputs, **pairs()}, folder / "inputs.safetensors")
    ends = two_ranks(two_processes.main, folder)
    assert [status for status, _ in ends] == [0, 0], ends
    return [load_file(folder / f"found_{rank}.safetensors") for rank in (0, 1)]


def test_two_processes_equal_the_official_loss_and_gradients_and_one_global_batch(ranks):
    official = load_file(RECORDING)
    for rank, found in enumerate(ranks):
        assert torch.allclose(found[f"loss_rank{rank}"], official[f"outputs/loss_rank{rank}"], atol=1e-6)
        for name in (f"image_{rank}", f"text_{rank}", f"logit_scale_rank{rank}"):
            assert torch.allclose(found[name], official[f"grads/{name}"], atol=1e-6), name

    inputs = {
        side: torch.cat([official[f"inputs/{side}_{rank}"] for rank in (0, 1)]).requires_grad_() for side in ("image", "text")
    }
    scale = official["inputs/logit_scale"].clone().requires_grad_()
    loss = ContrastiveLoss()(inputs["image"], inputs["text"], scale.exp())["loss"]
    loss.backward()
    assert torch.allclose(loss, official["outputs/loss_global_single_process"], atol=1e-6)
    for side in ("image", "text"):
        mean = torch.cat([ranks[rank][f"{side}_{rank}"] for rank in (0, 1)]) / 2  # what DDP makes of them
        assert torch.allclose(mean, inputs[side].grad, atol=1e-6)
        assert torch.allclose(inputs[side].grad, official[f"grads/{side}_global_single_process"], atol=1e-6)
    assert torch.allclose(scale.grad, official["grads/logit_scale_global_single_process"], atol=1e-6)

    sigmoid = SigmoidLoss(-2.0, "positive")
    rows = {side: inputs[side].detach().requires_grad_() for side in inputs}
    alone = sigmoid(rows["image"], rows["text"], scale.detach().exp(), torch.tensor([0, 1, 2, 1, 3, 2]))["loss"]
    alone.backward()
    assert torch.allclose(torch.stack([found["sigmoid"] for found in ranks]).mean(), alone, atol=1e-6)
    assert torch.allclose(torch.stack([found["sigmoid_bias"] for found in ranks]).mean(), sigmoid.bias.grad, atol=1e-6)
    for side in ("image", "text"):
        mean = torch.cat([found[f"sigmoid_{side}"] for found in ranks]) / 2
        assert torch.allclose(mean, rows[side].grad, atol=1e-6)

    ignoring = ContrastiveLoss(same_image="ignore")
    alone = ignoring(inputs["image"], inputs["text"], scale.exp(), torch.tensor([0, 1, 2, 1, 3, 2]))["loss"]
    assert torch.allclose(torch.stack([found["ignore"] for found in ranks]).mean(), alone, atol=1e-6)


def naive(images: torch.Tensor, texts: torch.Tensor, scale: float, index: list[int] | None) -> dict[str, float]:
    """Loops over pairs; `index` given = pairs of the same image are no negatives."""
    rows = len(images)

    def one_way(a: torch.Tensor, b: torch.Tensor) -> float:
        total = 0.0
        for i in range(rows):
            others = [j for j in range(rows) if j == i or index is None or index[j] != index[i]]
            total -= math.log(math.exp(scale * float(a[i] @ b[i])) / sum(math.exp(scale * float(a[i] @ b[j])) for j in others))
        return total / rows

    i2t, t2i = one_way(images, texts), one_way(texts, images)
    return {"loss": (i2t + t2i) / 2, "image_to_text": i2t, "text_to_image": t2i}


@pytest.mark.parametrize("same_image", ["negative", "ignore"])
def test_terms_equal_the_naive_twin(same_image):
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(7, 5, generator=generator), dim=1) for _ in range(2))
    index = [0, 1, 1, 2, 3, 1, 0]
    found = ContrastiveLoss(same_image)(images, texts, torch.tensor(9.0), torch.tensor(index))
    expected = naive(images, texts, 9.0, index if same_image == "ignore" else None)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_fp32_under_autocast():
    rows = torch.nn.functional.normalize(torch.randn(4, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    exact = ContrastiveLoss()(rows, rows, torch.tensor(14.0))["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ContrastiveLoss()(rows, rows, torch.tensor(14.0))["loss"], exact)


def test_gather_without_processes_is_the_identity_and_ignore_needs_image_rows():
    rows = torch.randn(3, 2)
    assert gather(rows) is rows
    with pytest.raises(ValueError, match="image_index_B"):
        ContrastiveLoss(same_image="ignore")(rows, rows, torch.tensor(1.0))


# ------------------------------------------------------------------------------------------------------ gradient caching


def kept_bytes(function: Any) -> tuple[Any, int]:
    total = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return function(), total


def step(
    network: Any, tiny: Any, chunk: int | None, dtype: torch.dtype | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    network.zero_grad()
    images, texts = tiny.images(10), tiny.texts(10)

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            left, right = (
                encode_in_chunks(network.encode_images, images, chunk),
                encode_in_chunks(network.encode_texts, texts, chunk),
            )
        return ContrastiveLoss()(left, right, network.logit_scale.exp())["loss"]

    loss, kept = kept_bytes(forward)
    loss.backward()
    return loss, {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}, kept


@pytest.mark.parametrize("mode", ["full", "adapter", "head"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_chunks_give_the_gradients_of_the_plain_batch_from_less_memory(tiny, mode, checkpointed):
    network = tiny.network("dinov2", "bert", checkpoint_activations=checkpointed)
    adapter = MultiWayAdapter(dropout=0.0) if mode == "adapter" else None
    if adapter:
        adapter.inject(network)
        tiny.randomise(network, "multiway")
    set_tuning(network, adapter, mode)
    set_mode(network, True, adapter)
    loss, grads, kept = step(network, tiny, None, None)
    chunked_loss, chunked_grads, chunked_kept = step(network, tiny, 3, None)  # 3 + 3 + 3 + 1
    assert torch.allclose(loss, chunked_loss, atol=1e-6)
    assert grads.keys() == chunked_grads.keys()
    for name in grads:
        assert torch.allclose(grads[name], chunked_grads[name], atol=1e-6, rtol=1e-5), name
    if mode != "head":
        assert chunked_kept < 0.5 * kept


def test_chunks_in_bf16_are_close_to_the_plain_batch(tiny):
    network = tiny.network()
    set_tuning(network, None, "full")
    _, grads, _ = step(network, tiny, None, torch.bfloat16)
    _, chunked, _ = step(network, tiny, 4, torch.bfloat16)
    for name in grads:
        scale = grads[name].abs().max().item()
        assert torch.allclose(grads[name], chunked[name], atol=0.03 * scale + 1e-6), name


def test_dropout_is_the_same_in_both_passes(tiny):
    """With dropout, chunks draw other masks than the whole batch; but the gradient must be that of the masks that were drawn."""
    network = tiny.network("vit", "bert", drop=0.3)
    set_tuning(network, None, "full")
    network.train()
    torch.manual_seed(1)
    loss, grads, _ = step(network, tiny, 4, None)
    twin = copy.deepcopy(network)
    twin.zero_grad()
    torch.manual_seed(1)  # the same draws in the same order, kept instead of recomputed
    images, texts = tiny.images(10), tiny.texts(10)
    left = torch.cat([twin.encode_images(slice_batch(images, i, i + 4)) for i in (0, 4, 8)])
    right = torch.cat([twin.encode_texts(slice_batch(texts, i, i + 4)) for i in (0, 4, 8)])
    expected = ContrastiveLoss()(left, right, twin.logit_scale.exp())["loss"]
    expected.backward()
    assert torch.equal(loss, expected)
    for name, parameter in twin.named_parameters():
        assert torch.allclose(grads[name], parameter.grad, atol=1e-6), name


def pairs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(10, 6, generator=generator) for name in ("images", "texts")}


def test_two_processes_with_chunks_equal_one_process_without(ranks):
    data = pairs()
    alone = Pair(None)
    alone(data["images"], data["texts"]).backward()
    for found in ranks:
        for name, parameter in alone.named_parameters():
            for chunk in (0, 2):
                assert torch.allclose(found[f"{chunk}/{name}"], parameter.grad, atol=1e-6), (chunk, name)


def test_a_batch_is_sliced_in_all_its_parts():
    regions = Regions(torch.arange(12.0).view(4, 3, 1), torch.zeros(4, 3, 7), torch.zeros(4, 3), torch.ones(4, 3).bool())
    batch = ImageBatch(("a", "b", "c", "d"), torch.arange(4), regions=regions, domains=("x", None, "y", None))
    part = slice_batch(batch, 1, 3)
    assert part.image_ids == ("b", "c")
    assert part.index_B.tolist() == [1, 2]
    assert part.pixels_B3HW is None
    assert part.regions is not None
    assert torch.equal(part.regions.features_BRD, regions.features_BRD[1:3])
    assert part.domains == (None, "y")
    assert len(slice_batch(batch, 3, 9)) == 1


def test_without_gradients_chunks_only_bound_the_batch(tiny):
    network = tiny.network()
    sizes: list[int] = []

    def encode(batch: Any) -> torch.Tensor:
        sizes.append(len(batch))
        return network.encode_images(batch)

    with torch.no_grad():
        found = encode_in_chunks(encode, tiny.images(5), 2)
        assert torch.allclose(found, network.encode_images(tiny.images(5)), atol=1e-6)
    assert sizes == [2, 2, 1]
    with pytest.raises(ValueError, match="at least 1"):
        encode_in_chunks(encode, tiny.images(5), 0)
