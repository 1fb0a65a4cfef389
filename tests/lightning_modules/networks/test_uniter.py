"""UNITER against tensors recorded from the official code, and against itself where two paths must agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from uniter_recording import Recorded, recorded

from datamodules.errors import InputError
from lightning_modules.networks.packing import Packed, items_of, pack
from lightning_modules.networks.pair_scorer import Ragged
from lightning_modules.networks.uniter import UniterRetrieval


@pytest.fixture(scope="module")
def official() -> Recorded:
    return recorded()


@pytest.mark.parametrize("layout", ["compact", "uncompact"])
def test_every_layer_is_the_official_one(official: Recorded, layout: str) -> None:
    packed = official.packed()
    mask = real(packed)
    with torch.no_grad():
        joint = official.network.encoder(packed, hidden=True, attention=[0, 1, 2])
        scores, _ = official.network.score(packed)
    out = official.group(f"outputs/{layout}/")
    # in the uncompacted layout the regions follow the padded text
    places = places_of(official, packed, layout)
    for name, ours in [("embedding", packed.x_BSD), *((f"hidden_{i + 1}", h) for i, h in enumerate(joint.hidden))]:
        theirs = out[name].gather(1, places[:, :, None].expand(-1, -1, ours.shape[2]))
        torch.testing.assert_close(ours[mask], theirs[mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores, out["rank_scores"][:, 0], atol=1e-5, rtol=0)
    matching = official.network.itm(official.network.encoder.pool(joint.tokens_BSD))
    torch.testing.assert_close(matching, out["itm_logits"], atol=1e-5, rtol=0)
    maps = joint.attention[2].maps()
    both = mask[:, None, :, None] & mask[:, None, None, :]
    index = places[:, None, :, None].expand(-1, maps.shape[1], -1, out["last_attn_probs"].shape[3])
    theirs = out["last_attn_probs"].gather(2, index)
    theirs = theirs.gather(3, places[:, None, None, :].expand(-1, maps.shape[1], maps.shape[2], -1))
    torch.testing.assert_close(maps * both, theirs * both, atol=1e-6, rtol=0)


def real(packed: Packed) -> Tensor:
    """[B, S]: True = a token."""
    return torch.arange(packed.x_BSD.shape[1]) < (packed.words_B + packed.regions_B)[:, None]


def places_of(official: Recorded, packed: Packed, layout: str) -> Tensor:
    """For every place of our sequence the place of the same token in the recorded one."""
    pairs, length = packed.x_BSD.shape[:2]
    if layout == "compact":
        return torch.arange(length).expand(pairs, -1)
    places = torch.zeros(pairs, length, dtype=torch.int64)
    for row, (words, regions) in enumerate(zip(official.words.tolist(), official.regions.tolist(), strict=True)):
        places[row, :words] = torch.arange(words)
        places[row, words : words + regions] = official.text_mask.shape[1] + torch.arange(regions)
    return places


def test_packing_keeps_the_order_and_cuts_at_the_longest_pair() -> None:
    text, regions = torch.arange(8.0).reshape(2, 4, 1), 10 + torch.arange(6.0).reshape(2, 3, 1)
    text_mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    region_mask = torch.tensor([[True, False, False], [True, True, False]])
    packed = pack(Ragged.of(text, text_mask), Ragged.of(regions, region_mask))
    assert packed.x_BSD.squeeze(-1).tolist() == [[0, 1, 2, 10], [4, 5, 13, 14]]
    assert packed.mask_BS is None  # pairs of one length
    relations = items_of(packed, {})
    assert relations.words.place_BN[relations.words.mask_BN].tolist() == [1]  # the second text has no word
    assert relations.regions.place_BN[relations.regions.mask_BN].tolist() == [3, 2, 3]
    crossed = pack(Ragged.of(text, text_mask), Ragged.of(regions, region_mask), torch.tensor([0, 1]), torch.tensor([1, 0]))
    assert crossed.mask_BS is not None
    assert crossed.mask_BS.sum(1).tolist() == [5, 3]
    assert crossed.x_BSD.squeeze(-1)[0].tolist() == [0, 1, 2, 13, 14]
    assert crossed.x_BSD.squeeze(-1)[1, :3].tolist() == [4, 5, 10]


def test_ragged_rows_are_taken_in_any_order_and_number() -> None:
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    ragged = Ragged.of(torch.arange(6.0).reshape(3, 2, 1), mask)
    some = ragged.take(torch.tensor([2, 1, 2]))
    assert some.states_ND.flatten().tolist() == [4, 5, 2, 4, 5]
    assert some.lengths_B.tolist() == [2, 1, 2]
    both = Ragged.joined([some, ragged])
    assert both.starts().tolist() == [0, 2, 3, 5, 7, 8]


def test_the_pooled_path_gives_the_score_and_the_gradients_of_the_full_one(official: Recorded) -> None:
    network, gradients, scores = official.network, [], []
    for pooled in (True, False):
        network.zero_grad()
        joint = network.encoder(official.packed(), pooled=pooled)
        score = network.rank(network.encoder.pool(joint.tokens_BSD)).squeeze(-1)
        (score * torch.arange(1.0, len(score) + 1)).sum().backward()
        scores.append(score.detach())
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})
    torch.testing.assert_close(scores[0], scores[1], atol=1e-6, rtol=0)
    assert (
        gradients[0].keys()
        == gradients[1].keys()
        == {name for name, _ in network.named_parameters()} - network.unused_parameters()
    )
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=2e-6, rtol=1e-4, msg=name)


def test_padding_changes_nothing(official: Recorded) -> None:
    network = official.network.encoder
    text = network.embed_texts(torch.cat([official.tokens, torch.full_like(official.tokens, 7)], 1), wider(official.text_mask))
    features = torch.cat([official.features, torch.full_like(official.features, -3.0)], 1)
    regions = network.embed_regions(features, torch.cat([official.boxes] * 2, 1), wider(official.region_mask))
    wide, one = pack(text, regions), pack(text, regions, torch.tensor([0]), torch.tensor([0]))
    with torch.no_grad():
        expected, _ = official.network.score(official.packed())
        torch.testing.assert_close(official.network.score(wide)[0], expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(official.network.score(one)[0], expected[:1], atol=1e-6, rtol=0)


def test_scores_are_not_rounded_to_bf16(official: Recorded) -> None:
    packed = official.packed()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores, _ = official.network.score(packed)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())
    with torch.no_grad():
        torch.testing.assert_close(scores, official.network.score(packed)[0], atol=0.2, rtol=0.1)


def wider(mask: Tensor) -> Tensor:
    return torch.cat([mask, torch.zeros_like(mask)], 1)


def test_dropout_is_on_in_training_and_off_in_evaluation(official: Recorded) -> None:
    network = official.network
    network.train()
    torch.manual_seed(0)
    first = network.score(official.packed())[0]
    assert not torch.equal(first, network.score(official.packed())[0])
    network.eval()
    assert torch.equal(network.score(official.packed())[0], network.score(official.packed())[0])


@pytest.mark.parametrize(
    ("sizes", "total"),
    [({}, 109_901_059), ({"width": 1024, "num_layers": 24, "num_heads": 16, "ffn_width": 4096}, 335_698_947)],
    ids=["base", "large"],
)
def test_parameter_counts(sizes: dict[str, int], total: int) -> None:
    with torch.device("meta"):
        network = UniterRetrieval(**sizes)
    assert sum(parameter.numel() for parameter in network.parameters()) == total


def test_layer_ids(official: Recorded) -> None:
    ids = {name: official.network.layer_id(name) for name, _ in official.network.named_parameters()}
    assert ids["encoder.text_embed.types.weight"] == 0
    assert ids["encoder.region_embed.feature_norm.bias"] == 0
    assert ids["encoder.layers.2.qkv.weight"] == 3
    assert ids["encoder.pooler.weight"] == ids["rank.bias"] == 4


def test_bad_input_is_told(official: Recorded) -> None:
    with pytest.raises(InputError, match="multiple of num_heads"):
        UniterRetrieval(width=50, num_heads=4)
    with pytest.raises(InputError, match="32 text positions"):
        official.network.encoder.embed_texts(torch.zeros(1, 33, dtype=torch.int64), torch.ones(1, 33, dtype=torch.bool))
    with pytest.raises(InputError, match="layers 0 to 2"):
        official.network.encoder(official.packed(), attention=[3])


def test_the_fixture_is_committed() -> None:
    assert (Path(__file__).parents[2] / "recordings" / "iais" / "recording.safetensors").is_file()
