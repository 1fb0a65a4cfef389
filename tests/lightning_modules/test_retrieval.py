"""The wiring: modes while training, reproducible dropout, gradient caching, compilation, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_beit3 import beit3, beit3_pairs
from tiny_library_models import dual_encoder
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.errors import AgreedError, InputError
from datamodules.records import PairBatch, Positives
from lightning_modules.adapters.lora import LoRAAdapter
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.checkpoints.adapter_export import export_adapter, load_adapter, read_adapter_config
from lightning_modules.networks.beit3 import BEiT3Retrieval
from lightning_modules.objectives.annealing import Annealing
from lightning_modules.objectives.relation_alignment import IAIS, RelationAlignment
from lightning_modules.objectives.sigmoid import SigmoidLoss
from lightning_modules.retrieval import RetrievalModule


def module(tiny: Any, tuning: str = "adapter", drop: float = 0.0, depth: int = 2, **options: Any) -> RetrievalModule:
    adapter = MultiWayAdapter(dropout=0.3) if tuning == "adapter" else None
    model = RetrievalModule(tiny.network(drop=drop, depth=depth), adapter, tuning, **options)
    tiny.randomise(model.network, "multiway")
    model.log_dict = lambda *arguments, **keywords: None  # type: ignore[method-assign] - outside a trainer
    return model


def pairs(tiny: Any, rows: int = 6) -> PairBatch:
    return PairBatch(tiny.images(rows), tiny.texts(rows))


def place(model: RetrievalModule, epoch: int, rank: int = 0) -> None:
    """A trainer's place, as far as the module asks for it."""
    model._trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)


def loss_at(model: RetrievalModule, batch: PairBatch, epoch: int, index: int, rank: int = 0) -> float:
    place(model, epoch, rank)
    model.train()
    model.on_train_batch_start(batch, index)
    return model.training_step(batch, index).item()


def test_dropout_is_a_function_of_seed_epoch_and_batch(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    model, batch = module(tiny), pairs(tiny)
    first = loss_at(model, batch, 1, 2)
    torch.manual_seed(99)
    torch.rand(1000)  # whatever was drawn in between
    assert loss_at(model, batch, 1, 2) == first
    others = [loss_at(model, batch, 1, 3), loss_at(model, batch, 2, 2), loss_at(model, batch, 1, 2, rank=1)]
    monkeypatch.setenv("PL_GLOBAL_SEED", "6")
    others.append(loss_at(model, batch, 1, 2))
    assert len({first, *others}) == 5


def test_in_a_script_dropout_is_of_the_seed_that_torch_was_given(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the one at the start of the training, which a resumed one takes up again."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)

    def trained(seed: int, resume: Path | None = None) -> Tensor:
        model = module(tiny, drop=0.5)
        torch.manual_seed(seed)
        kept = ModelCheckpoint(tmp_path, filename=f"{seed}-{{epoch}}", save_top_k=-1, enable_version_counter=False)
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[kept]
        )
        trainer.fit(model, DataLoader([pairs(tiny)] * 2, batch_size=None), ckpt_path=resume, weights_only=True)
        return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])

    whole = trained(1)
    assert torch.equal(trained(1), whole)
    assert not torch.equal(trained(2), whole)
    assert torch.equal(trained(3, tmp_path / "1-epoch=0.ckpt"), whole)


def test_frozen_parts_stay_in_eval_mode_while_training(tiny: Any) -> None:
    model = module(tiny, drop=0.5)
    model.train()
    for name, part in model.network.named_modules():
        if isinstance(part, nn.Dropout):
            assert part.training == (".multiway" in name), name
    model.eval()
    assert not any(part.training for part in model.network.modules())

    for free in (module(tiny, "full", drop=0.5), module(tiny, drop=0.5, eval_frozen=False)):
        free.train()
        assert all(part.training for part in free.network.modules())


@pytest.mark.parametrize("tuning", ["full", "adapter", "head"])
@pytest.mark.parametrize("chunk", [1, 4, 6])
def test_gradient_cache_gives_the_gradients_of_the_plain_batch(tiny: Any, tuning: str, chunk: int) -> None:
    """6 pairs in chunks of 1, of 4 and 2, and of all."""
    batch, found = pairs(tiny), []
    for size in (None, chunk):
        model = module(tiny, tuning, gradient_cache_chunk=size).eval()  # dropout draws per chunk: compared without it
        loss = model.training_step(batch, 0)
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert all(gradient is not None for gradient in gradients.values())
        found.append((loss.detach(), gradients))
    (loss, plain), (cached_loss, cached) = found
    torch.testing.assert_close(cached_loss, loss)
    for name, gradient in plain.items():
        torch.testing.assert_close(cached[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_compiled_encoders_give_the_same_loss(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the eager backend, which traces without generating code: the hooks of the adapters are traced as well."""
    from lightning_modules.networks.dual_encoder import DualEncoder

    whole = DualEncoder.compile_encoders
    monkeypatch.setattr(DualEncoder, "compile_encoders", lambda network: whole(network, backend="eager"))
    batch = pairs(tiny)
    plain, compiled = module(tiny, depth=1).eval(), module(tiny, depth=1, compile=True).eval()
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(compiled.training_step(batch, 0), plain.training_step(batch, 0))


def test_checkpoints_hold_what_trains_and_refuse_other_tuning(tiny: Any) -> None:
    saved: dict[str, Any] = {}
    model = module(tiny)
    model.on_save_checkpoint(saved)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(saved["state_dict"]) == trainable
    assert all(name.startswith("network.") for name in trainable)

    again = module(tiny)
    tiny.randomise(again.network, "multiway", seed=6)
    again.on_load_checkpoint(saved)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in saved["state_dict"].items())
    with pytest.raises(InputError, match="do not belong"):
        module(tiny, "head").on_load_checkpoint(saved)
    with pytest.raises(InputError, match="does not say which backbone"):
        model.on_load_checkpoint({"state_dict": saved["state_dict"]})


def test_tuning_and_adapter_must_agree(tiny: Any) -> None:
    with pytest.raises(InputError, match="needs an adapter"):
        RetrievalModule(tiny.network(), None, "adapter")
    with pytest.raises(InputError, match="takes no adapter"):
        RetrievalModule(tiny.network(), MultiWayAdapter(), "head")


def trained(model: RetrievalModule) -> set[str]:
    return {name for name, parameter in model.network.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("adapter", [MultiWayAdapter, lambda: LoRAAdapter(rank=2)])
@pytest.mark.parametrize("kind", ["dual", "beit3"])
def test_heads_that_init_from_brings_stay_frozen_through_export_and_load(
    tiny: Any, tmp_path: Path, kind: str, adapter: Callable[[], Any]
) -> None:
    def network(seed: int) -> Any:
        if kind == "dual":
            return tiny.network(seed=seed)
        torch.manual_seed(seed)
        return BEiT3Retrieval(16, 16, 2, 2, 64, 8, 40, 16, max_tokens=8, weights="random").eval()

    parent = network(1)
    torch.save(parent.state_dict(), tmp_path / "parent.pt")
    heads = {name for name, _ in parent.head_parameters()}
    model = RetrievalModule(network(2), adapter(), init_from=str(tmp_path / "parent.pt")).eval()
    owned = {name for name, _ in model.network.named_parameters() if model.owns(name)}
    assert trained(model) == owned
    assert (model.counts.trainable, model.counts.adapter) == (model.counts.adapter, model.counts.trainable)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if name in owned:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.3)

    def outputs(module: Any) -> Tensor:
        with torch.no_grad():
            return torch.cat([module.encode_images(tiny.images()), module.encode_texts(tiny.texts())])

    expected = outputs(model.network)
    saved: dict[str, Any] = {}
    model.on_save_checkpoint(saved)
    assert set(saved["state_dict"]) == {f"network.{name}" for name in owned}
    again = RetrievalModule(network(3), adapter(), init_from=str(tmp_path / "parent.pt")).eval()
    again.on_load_checkpoint(saved)
    assert torch.equal(outputs(again.network), expected)

    folder = export_adapter(model.network, model.adapter, tmp_path / "export")
    assert read_adapter_config(folder).trained == ()
    bare = network(1)
    load_adapter(bare, folder)
    assert torch.equal(outputs(bare), expected)
    other = network(1)
    with torch.no_grad():
        other.logit_scale.add_(1.0)  # a frozen head is part of the backbone that the export belongs to
    with pytest.raises(InputError, match="with other weights"):
        load_adapter(other, folder)

    everything = RetrievalModule(network(2), adapter(), train_heads="all", init_from=str(tmp_path / "parent.pt"))
    assert trained(everything) == owned | heads
    fresh = RetrievalModule(network(2), adapter())
    assert trained(fresh) == owned | heads
    assert trained(RetrievalModule(network(2), None, "head", init_from=str(tmp_path / "parent.pt"))) == heads
    assert trained(RetrievalModule(network(2), None, "none")) == set()


def test_sanity_check_measures_nothing(tiny: Any) -> None:
    """Half of a split must neither be ranked nor left behind for the real validation."""
    model = module(tiny).eval()
    model._trainer = SimpleNamespace(sanity_checking=True)
    model.validation_step(tiny.images(4), 0)
    model.on_validation_epoch_end()
    assert not model._queries
    assert isinstance(model.recall.update_count, int)
    assert model.recall.update_count == 0


def test_the_module_is_lightning_and_the_network_is_not(tiny: Any) -> None:
    model = module(tiny)
    assert isinstance(model, pl.LightningModule)
    assert not any(isinstance(part, pl.LightningModule) for part in model.network.modules())
    assert isinstance(model.training_step(pairs(tiny), 0), Tensor)


# ------------------------------------------------------------------------------------------------------------ IAIS on BEiT-3


@pytest.mark.parametrize("kind", ["singular", "distributed"])
def test_iais_is_added_to_the_contrastive_loss_of_beit3(kind: Any) -> None:
    batch = beit3_pairs()
    plain = beit3().training_step(batch, 0)
    model = beit3(iais=IAIS(kind, annealing=Annealing("linear", weight=3.0)))
    relations = model.network.relations(batch, [1])
    loss = RelationAlignment(kind)
    terms = loss(relations.attention[1], relations.words, relations.regions, ("language", "vision"))
    expected = plain + 3.0 * 5 / 10 * (terms["language"].mean() + terms["vision"].mean())
    torch.testing.assert_close(model.training_step(batch, 0), expected)
    summed = beit3(iais=IAIS(kind, reduction="sum", annealing=Annealing("linear", weight=3.0))).training_step(batch, 0)
    torch.testing.assert_close(summed - plain, 8 * (expected - plain))


@pytest.mark.parametrize("kind", ["singular", "distributed"])
def test_gradient_cache_holds_for_the_pass_of_iais(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients are those of the whole batch, and no pass has more rows than a chunk."""
    batch, found = beit3_pairs(), []
    for chunk in (None, 2):
        model = beit3(iais=IAIS(kind, annealing=Annealing("constant", weight=3.0)), gradient_cache_chunk=chunk).eval()
        rows: list[int] = []
        terms: dict[str, Tensor] = {}

        def relations(part: PairBatch, layers: Any, whole: Any = model.network.relations, rows: list[int] = rows) -> Any:
            rows.append(len(part))
            return whole(part, layers)

        monkeypatch.setattr(model.network, "relations", relations)
        monkeypatch.setattr(model, "log_terms", lambda made, count, terms=terms: terms.update(made))
        loss = model.training_step(batch, 0)
        assert rows == [2] * (len(batch) // 2) + [1] * (len(batch) % 2) if chunk else rows == [len(batch)]
        loss.backward()
        gradients = {name: each.grad for name, each in model.network.named_parameters() if each.grad is not None}
        found.append(({name: value.detach() for name, value in terms.items()}, gradients))
    (plain, plain_gradients), (cached, cached_gradients) = found
    assert plain["iais_language"] > 0
    torch.testing.assert_close(cached, plain)
    torch.testing.assert_close(cached_gradients, plain_gradients, rtol=1e-4, atol=1e-5)


def test_iais_reaches_the_adapters_of_beit3(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the contrastive loss taken out, IAIS alone moves the adapters, on both modalities."""
    model = beit3(iais=IAIS("distributed", annealing=Annealing("constant")), adapter=MultiWayAdapter(), tuning="adapter")
    monkeypatch.setattr(model.objective, "forward", lambda images, *others: {"loss": 0.0 * images.sum()})
    model.training_step(beit3_pairs(), 0).backward()
    grown = {name for name, p in model.network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {name.split(".")[5] for name in grown if ".multiway." in name} >= {"image", "text"}, grown
    assert all(".multiway." in name for name in grown)


def test_iais_on_beit3_makes_nothing_on_the_default_device() -> None:
    """A tensor of the CPU in the logs ends a run on several GPUs (NCCL has no sum of it); here that device is meta."""
    model, logged = beit3(iais=IAIS()), {}
    model.log_dict = lambda values, **keywords: logged.update(values)  # type: ignore[method-assign,assignment]
    batch = beit3_pairs()
    with torch.device("meta"):
        model.training_step(batch, 0)
    assert "train/iais_weight" in logged
    assert {value.device.type for value in logged.values()} == {"cpu"}


def test_iais_needs_one_sequence(tiny: Any) -> None:
    with pytest.raises(InputError, match="encodes images and texts apart"):
        module(tiny, iais=IAIS())
    with pytest.raises(InputError, match="layers 0 to 1"):
        beit3(iais=IAIS(layers=[2]))


# --------------------------------------------------------------------------------------------- what trains beside the network


def test_an_objective_trains_beside_the_network_and_not_alone(tiny: Any) -> None:
    assert module(tiny, "head", objective=SigmoidLoss()).objective.bias.requires_grad
    for model in (
        module(tiny, "frozen", objective=SigmoidLoss()),
        RetrievalModule(tiny.network(), LoRAAdapter(rank=0), "adapter", train_heads="none", objective=SigmoidLoss()),
    ):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert model.counts.trainable == 0
    fixed = SigmoidLoss().requires_grad_(False)  # as its maker wants it
    assert not module(tiny, "head", objective=fixed).objective.bias.requires_grad


def test_what_is_neither_network_nor_objective_is_refused_before_training(tiny: Any) -> None:
    class Own(RetrievalModule):
        def __init__(self) -> None:
            super().__init__(tiny.network(), None, "head")
            self.extra = nn.Linear(2, 2)

    model = Own()
    model._trainer = SimpleNamespace(estimated_stepping_batches=2)
    with pytest.raises(
        InputError, match=r"Own has parameters .* \(extra.weight, extra.bias\), so nothing would train or keep them"
    ):
        model.configure_optimizers()
    model.extra.requires_grad_(False)
    model.configure_optimizers()


def test_a_network_that_is_called_otherwise_is_refused_before_it_is_touched(tiny: Any) -> None:
    network = tiny.network()
    network.__class__ = type("Own", (type(network),), {"encode_texts": lambda self, tokens, mask: tokens})
    with pytest.raises(InputError, match=r"model.network: .*Own has encode_texts\(tokens, mask\), .* encode_texts\(batch\)"):
        RetrievalModule(network, None, "full")


def test_folds_that_do_not_divide_the_test_split_are_refused_before_a_training(tiny: Any) -> None:
    data = SimpleNamespace(splits=lambda: {"test": 11}, records=lambda split: range(11))
    for folds in (11, 4):
        model = module(tiny, "full", folds=folds)
        model._trainer = SimpleNamespace(datamodule=data)
        if folds == 11:
            model.on_fit_start()
            continue
        with pytest.raises(InputError, match="folds is 4, and 11 images do not divide"):
            model.on_fit_start()


def test_recalls_that_any_model_has_come_with_a_remark(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """In the results of each evaluation; validations print it once."""
    model = module(tiny, "full")
    model.log_dict = lambda values, **_: None  # type: ignore[method-assign]
    for images, remark in ((2, "of 2 images and 2 captions any model has 100 in i2t R@5, i2t R@10, t2i R@5, t2i R@10"), (11, "")):
        sets = [SimpleNamespace(dataset=range(images)), SimpleNamespace(dataset=range(images))]
        model._trainer = SimpleNamespace(sanity_checking=False, is_global_zero=True, val_dataloaders=sets, test_dataloaders=sets)
        for stage in ("val", "val", "test"):
            model.recall.update_images(torch.eye(images), torch.arange(images))
            model.recall.update_texts(torch.eye(images), torch.arange(images), torch.arange(images))
            model._evaluation_end(stage)
            assert model.evaluation_notes().get("remarks", {}).get("recalls", "").startswith(remark)
        said = capsys.readouterr().out.splitlines()
        stages = [line.partition(": of")[0] for line in said]
        assert stages == (["crosslight: val, recalls", "crosslight: test, recalls"] if remark else [])


def test_a_test_gives_recalls_over_folds_and_says_how(tiny: Any) -> None:
    """A validation gives none; images that do not divide are refused before any is encoded."""
    model = module(tiny, "full", folds=5)
    logged: dict[str, Tensor] = {}
    model.log_dict = lambda values, **_: logged.update(values)  # type: ignore[method-assign,assignment]
    sets = [SimpleNamespace(dataset=range(10)), SimpleNamespace(dataset=range(20))]
    model._trainer = SimpleNamespace(sanity_checking=False, is_global_zero=True, val_dataloaders=sets, test_dataloaders=sets)
    for stage in ("test", "val"):
        logged.clear()
        model.recall.update_images(torch.eye(10), torch.arange(10))
        model.recall.update_texts(torch.eye(10).repeat_interleave(2, 0), torch.arange(20), torch.arange(20) // 2)
        model._evaluation_end(stage)
        said = "mean over 5 galleries of 2 images, consecutive in the split, with their captions"
        if stage == "test":
            assert float(logged["test/folds_rsum"]) == 600
            assert model.evaluation_notes()["folds"] == said
            assert model.evaluation_notes()["columns"]["folds_t2i_r1"] == "2 t2i R@1"
            assert model.protocol == f"{RetrievalModule.protocol}; folds_...: {said}"
        else:
            assert not any("folds" in name for name in logged)
            assert model.evaluation_notes().keys() == {"remarks"}
            assert model.protocol == RetrievalModule.protocol
    model.on_test_start()
    model.folds = 3
    with pytest.raises(InputError, match="folds is 3, and 10 images do not divide"):
        model.on_test_start()


def test_a_test_measures_further_right_answers_of_its_data(tiny: Any) -> None:
    """A validation does not; what the data refuse is refused before any image is encoded."""
    model = module(tiny, "full")
    logged: dict[str, Tensor] = {}
    model.log_dict = lambda values, **_: logged.update(values)  # type: ignore[method-assign,assignment]
    sets = [SimpleNamespace(dataset=range(4)), SimpleNamespace(dataset=range(8))]
    answer = torch.tensor([0, 1, 2])
    found = {"eccv": Positives(torch.tensor([0, 0, 1]), answer, answer, torch.tensor([0, 0, 3]))}
    data = SimpleNamespace(split_positives=lambda split: found)
    model._trainer = SimpleNamespace(
        sanity_checking=False, is_global_zero=True, val_dataloaders=sets, test_dataloaders=sets, datamodule=data
    )
    model.on_test_start()
    for stage in ("test", "val"):
        logged.clear()
        model.recall.update_images(torch.eye(4), torch.arange(4))
        model.recall.update_texts(torch.eye(4).repeat_interleave(2, 0), torch.arange(8), torch.arange(8) // 2)
        model._evaluation_end(stage)
        measured = {name for name in logged if "eccv" in name}
        assert len(measured) == (10 if stage == "test" else 0)
        assert ("positives" in model.evaluation_notes()) == (stage == "test")
        if stage == "test":
            # of image 0 both right captions come first; the first of image 1's two own ones is right
            assert float(logged["test/eccv_i2t_map_at_r"]) == 50
            assert float(logged["test/eccv_t2i_r1"]) == pytest.approx(200 / 3)

    def refused(split: str) -> None:
        raise InputError(f"no such file for {split}")

    data.split_positives = refused
    with pytest.raises(InputError, match="no such file for test"):
        model.on_test_start()


def network_of(kind: str, tiny: Any) -> Any:
    return tiny.network() if kind == "two towers" else dual_encoder(kind)


@pytest.mark.parametrize("kind", ["two towers", "clip", "siglip"])
@pytest.mark.parametrize("side", ["image", "text"])
def test_one_encoder_can_stay_as_it_is(kind: str, side: Any, tiny: Any) -> None:
    """Its projection too: its vectors are those of before after a step, and the other's are not. A checkpoint holds the rest."""
    module = RetrievalModule(network_of(kind, tiny), tuning="full", frozen_tower=side)
    network = module.network
    module.train()
    assert all(part.training is False for part in network.towers()[side].modules())  # no dropout in it
    assert any(part.training for part in network.towers()[{"image": "text", "text": "image"}[side]].modules())
    batch = PairBatch(tiny.images(), tiny.texts())
    before = network.encode_images(batch.images).detach(), network.encode_texts(batch.texts).detach()
    assert [side == "image", side == "text"] == [not rows.requires_grad for rows in (
        network.encode_images(batch.images), network.encode_texts(batch.texts))]  # fmt: skip
    module.log_terms = lambda terms, size: None  # type: ignore[method-assign] - outside a trainer
    module.training_step(batch, 0).backward()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert module.counts.trainable == sum(parameter.numel() for parameter in trained)
    assert all(parameter.grad is not None for parameter in trained)
    torch.optim.SGD(trained, 1.0).step()
    after = network.encode_images(batch.images), network.encode_texts(batch.texts)
    assert torch.equal(before[side == "text"], after[side == "text"])
    assert not torch.equal(before[side != "text"], after[side != "text"])
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    again = RetrievalModule(network_of(kind, tiny), tuning="full", frozen_tower=side)
    again.on_load_checkpoint(checkpoint)
    assert torch.equal(again.network.encode_texts(batch.texts), after[1])
    with pytest.raises(InputError, match="another architecture or tuning mode"):
        RetrievalModule(network_of(kind, tiny), tuning="full").on_load_checkpoint(checkpoint)


def test_an_encoder_that_cannot_be_frozen_is_refused(tiny: Any) -> None:
    with pytest.raises(InputError, match=r"frozen_tower is image, and the adapter is in that tower: set adapter\.towers to text"):
        RetrievalModule(dual_encoder("clip"), MultiWayAdapter(), frozen_tower="image")
    module = RetrievalModule(dual_encoder("clip"), LoRAAdapter(rank=1, towers="text"), frozen_tower="image")
    assert module.counts.adapter > 0
    with pytest.raises(InputError, match="has no image tower that could be frozen"):
        beit3(frozen_tower="image")
    assert RetrievalModule(tiny.network(), tuning="head", frozen_tower="text").counts.trainable > 0


def test_batch_norms_that_train_are_refused_beside_gradient_caching() -> None:
    model = beit3(gradient_cache_chunk=2)
    model.on_fit_start()
    model.network.norm = torch.nn.BatchNorm1d(2)
    with pytest.raises(AgreedError, match=r"gradient_cache_chunk is 2, but norm would normalize by each chunk"):
        model.on_fit_start()
    model.network.norm.requires_grad_(False)
    model.tuning = "head"  # eval_frozen: it keeps the statistics that it has
    model.on_fit_start()
