"""Official UNITER checkpoints in and out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from datamodules.errors import InputError
from datamodules.files import releases as official
from lightning_modules.checkpoints.fill import fill
from lightning_modules.checkpoints.uniter import load, load_official, official_names, to_official, write_official
from lightning_modules.networks.packing import Packed
from lightning_modules.networks.uniter import EPS, UniterRetrieval

SIZES = {
    "width": 16,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_width": 32,
    "vocab_size": 40,
    "text_positions": 12,
    "feature_width": 8,
}


def network(**changes: int) -> UniterRetrieval:
    torch.manual_seed(len(changes))
    return UniterRetrieval(**{**SIZES, **changes})


def pretraining(source: UniterRetrieval) -> dict[str, Tensor]:
    """The layout of uniter-base.pt: the encoder, the matching head and the heads of masked pre-training; no ranking head."""
    state = {name: tensor for name, tensor in to_official(source.state_dict()).items() if not name.startswith("rank_output")}
    state["cls.predictions.bias"] = torch.zeros(40)
    state["feat_regress.weight"] = state["uniter.img_embeddings.img_linear.weight"]
    state["region_classifier.net.0.weight"] = torch.zeros(16, 16)
    return state


def test_round_trip_is_exact(tmp_path: Path) -> None:
    source, target = network(), network()
    for parameter in target.parameters():
        torch.nn.init.zeros_(parameter)
    path = write_official(source, tmp_path / "model_step_1.pt")
    assert load_official(target, path) == frozenset()
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name]), name


def test_every_tensor_has_its_official_name() -> None:
    names = [each for name in network().state_dict() for each in official_names(name)]
    assert len(names) == len(set(names)) == 22 + 16 * (SIZES["num_layers"])  # base, 12 layers: 214
    assert "uniter.encoder.layer.1.attention.self.value.bias" in names
    with pytest.raises(InputError, match="no place in the official UNITER layout"):
        official_names("encoder.layers.0.multiway.knowledge_extractor.down.weight")


def test_pretraining_files_start_the_ranking_head_from_matched(tmp_path: Path) -> None:
    source, target = network(), network()
    torch.save(pretraining(source), tmp_path / "uniter-tiny.pt")
    extra = load_official(target, tmp_path / "uniter-tiny.pt")
    assert extra == {"cls.predictions.bias", "feat_regress.weight", "region_classifier.net.0.weight"}
    assert torch.equal(target.rank.weight, source.itm.weight[1:])
    assert torch.equal(target.rank.bias, source.itm.bias[1:])


def test_a_fine_tuned_ranking_head_is_kept(tmp_path: Path) -> None:
    source, target = network(), network()
    torch.save(to_official(source.state_dict()), tmp_path / "model_step_5000.pt")
    load_official(target, tmp_path / "model_step_5000.pt")
    assert torch.equal(target.rank.weight, source.rank.weight)
    assert not torch.equal(target.rank.weight, source.itm.weight[1:])


def test_old_names_prefixes_and_half_precision(tmp_path: Path) -> None:
    source, target = network(), network()
    old = {}
    for name, tensor in pretraining(source).items():
        if "LayerNorm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        old[name.replace("uniter.", "bert.", 1)] = tensor.half()
    torch.save(old, tmp_path / "old.pt")
    load_official(target, tmp_path / "old.pt")
    for name, tensor in source.state_dict().items():
        if not name.startswith("rank."):
            torch.testing.assert_close(target.state_dict()[name], tensor.half().float(), atol=0, rtol=0, msg=name)
    assert all(parameter.dtype == torch.float32 for parameter in target.parameters())


def test_what_does_not_fit_is_told_and_nothing_changes(tmp_path: Path) -> None:
    torch.save(to_official(network().state_dict()), tmp_path / "tiny.pt")
    deeper, wider = network(num_layers=3), network(width=32)
    before = {name: tensor.clone() for name, tensor in deeper.state_dict().items()}
    with pytest.raises(InputError, match=r"tiny\.pt lacks 16 tensors .*num_layers"):
        load_official(deeper, tmp_path / "tiny.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in deeper.state_dict().items())
    with pytest.raises(InputError, match=r"other shapes .* \[40, 16\] instead of \[40, 32\]"):
        load_official(wider, tmp_path / "tiny.pt")
    with pytest.raises(InputError, match="exists already"):
        write_official(network(), tmp_path / "tiny.pt")


def bert(folder: Path, **changes: int) -> BertModel:
    torch.manual_seed(7)
    sizes = {
        "vocab_size": 30, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40,
        "max_position_embeddings": 12,
    }  # fmt: skip
    model = BertModel(BertConfig(**sizes | changes, layer_norm_eps=EPS)).eval()
    model.save_pretrained(folder)
    return model


def from_bert(folder: Path, **changes: Any) -> UniterRetrieval:
    sizes = {
        "width": 24, "num_layers": 2, "num_heads": 2, "ffn_width": 40, "vocab_size": 30, "text_positions": 12, "feature_width": 5,
        "tokenizer": None,
    }  # fmt: skip
    return fill(UniterRetrieval(**sizes | changes, weights=str(folder))).eval()


def test_bert_becomes_the_text_side(tmp_path: Path) -> None:
    model = bert(tmp_path)
    network = from_bert(tmp_path)
    tokens = torch.randint(0, 30, (2, 7), generator=torch.Generator().manual_seed(0))
    words = network.encoder.embed_texts(tokens, torch.ones_like(tokens, dtype=torch.bool))
    packed = Packed(words.states_ND.view(2, 7, -1), None, words.lengths_B, torch.zeros_like(words.lengths_B))
    with torch.no_grad():
        ours, theirs = network.encoder(packed).tokens_BSD, model(tokens)
        torch.testing.assert_close(ours, theirs.last_hidden_state, atol=1e-6, rtol=0)
        torch.testing.assert_close(network.encoder.pool(ours), theirs.pooler_output, atol=1e-6, rtol=0)
    assert not network.loaded_heads


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"num_layers": 1}, "2 layers"), ({"ffn_width": 48}, "FFN 40"),
     ({"num_heads": 3}, "2 attention heads, here 3; set num_heads"), ({"text_positions": 16}, "12 positions")],
)  # fmt: skip
def test_a_bert_of_other_sizes_is_refused(tmp_path: Path, changes: dict[str, int], says: str) -> None:
    bert(tmp_path)
    with pytest.raises(InputError, match=says):
        from_bert(tmp_path, **changes)


def test_weights_that_are_nowhere(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither an official UNITER checkpoint \(uniter-base.pt"):
        from_bert(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"did you mean uniter-base"):
        from_bert(Path("uniter-bse.pt"))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="a gpt2, not a BERT"):
        from_bert(tmp_path)


def test_official_names_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = tmp_path / "release"
    write_official(network(), release / "uniter-base.pt")
    monkeypatch.setenv("CROSSLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CROSSLIGHT_UNITER_URL", release.as_uri())
    asked = []
    monkeypatch.setattr(official, "fetch", lambda remote, folder: asked.append(remote.url) or shutil.copy(
        release / "uniter-base.pt", folder / "uniter-base.pt"))  # fmt: skip
    for _ in range(2):
        fresh = network()
        load(fresh, "uniter-base")
        assert fresh.loaded_heads == {"rank.weight", "rank.bias", "itm.weight", "itm.bias"}
    assert asked == [f"{release.as_uri()}/uniter-base.pt"]
