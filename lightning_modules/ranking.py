"""Retrieval by a network that scores pairs (UNITER, ViLT): margin ranking against hard negatives that the model
mines itself, and IAIS.

A step, for every positive of a side: score it and its candidates (no gradient, no dropout), keep the highest-scored candidates,
score positive and kept again with gradient. Both sides are summed: hard texts for an image, hard images for a text; their
positives are different pairs. Source: ChenRocks/UNITER and lancopku/IAIS `train_itm_hard_negatives.py`.

Legend: P positives, X a positive and its negatives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from datamodules.errors import InputError, some
from datamodules.inputs import Inputs
from datamodules.loading.image_files import read_image_files, require_files, require_readable
from datamodules.loading.ranking import Ranking
from datamodules.loading.text_lists import read_text_list, require_texts
from datamodules.records import Candidates, ImageBatch, PairBatch, RankingBatch, Regions, TextBatch
from lightning_modules import optimization
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.base import Better, TunedModule
from lightning_modules.checkpoints.fingerprint import backbone_fingerprint
from lightning_modules.checkpoints.fresh import fresh_parameters
from lightning_modules.checkpoints.model_card import Task
from lightning_modules.contract import require_signatures
from lightning_modules.metrics.full_rank import FullRank
from lightning_modules.metrics.pair_batches import score_pairs_by_length
from lightning_modules.metrics.recalls import BETTER, require_folds
from lightning_modules.metrics.relation_distance import AlignmentDistance, RelationDistance
from lightning_modules.metrics.relation_evenness import EVEN, RelationEvenness
from lightning_modules.metrics.rerank import Rerank
from lightning_modules.networks.attention import Relations
from lightning_modules.networks.modes import evaluating
from lightning_modules.networks.network import FirstStage, HasRelations, RankingNetwork, require_attributes
from lightning_modules.networks.pair_scorer import Ragged
from lightning_modules.objectives.matching import MarginRanking, hardest, require_candidates
from lightning_modules.objectives.objective import MatchingObjective
from lightning_modules.objectives.relation_alignment import IAIS, Anchor

Side = Literal["hard_texts", "hard_images"]
SIDES: tuple[Side, ...] = ("hard_texts", "hard_images")
_RELATED = (
    "isda", "isda_mean", "isda_pairs", "iais_singular", "iais_distributed", "iais_pairs", "evenness_words", "evenness_regions",
)  # fmt: skip


class RankingModule(TunedModule):
    """Hard-negative fine-tuning of UNITER, ViLT or another pair scorer, with or without IAIS, and exact evaluation on all pairs.

    The data module decides how many positives a step has and how many candidates (its `ranking` option). The released recipe
    accumulates eight micro-batches of one positive a side: batch_size = number of devices, trainer.accumulate_grad_batches=8.

    Args:
        network: UNITER, ViLT, or another `RankingNetwork`.
        adapter: What is put into the network; needed for (and only for) `tuning: adapter`.
        tuning: full = everything learns; adapter = the adapter and heads that are new; head = the ranking head; frozen = nothing:
            `crosslight run` then tests the network as it is.
        train_heads: With tuning adapter: new = the heads that neither the network's own weights nor init_from brought; all; or
            none.
        objective: A `MatchingObjective`: margin ranking (default), or matching, to get a network started.
        hard_negatives: How many of the candidates are kept for each positive: the highest-scored ones.
        iais: IAIS; null is plain ranking.
        optimization: AdamW and the schedule.
        init_from: Start from these weights (a run folder, a checkpoint, or an adapter export). To resume an interrupted run, use
            --run_dir instead.
        eval_frozen: Keep frozen parts in eval mode while training.
        isda_layer: Layer whose attention ISDa compares, 0-based, negative counts from the last.
        folds: Also give recalls over this many galleries of equal size, averaged, in tests (COCO's 1K protocol: 5): `folds_...`.
        compat: Also give the recalls that the released code prints, which count some captions twice: `compat_...`.
        rerank: Score only the pairs that the network's own vectors put first, in validation and tests: BLIP's protocol, for
            networks that have such vectors. Null = every pair.

    Raises:
        InputError: A layer that does not exist, or an option out of range.
    """

    protocol = "every image against every caption of the split, every pair scored, pessimistic ties"

    def __init__(
        self,
        network: RankingNetwork,
        adapter: Adapter | None = None,
        tuning: Literal["full", "adapter", "head", "frozen"] = "full",
        train_heads: Literal["new", "all", "none"] = "new",
        objective: MatchingObjective | None = None,
        hard_negatives: int = 31,
        iais: IAIS | None = None,
        optimization: optimization.Optimization = optimization.Optimization(),  # noqa: B008 - a config default, never mutated
        init_from: str | None = None,
        eval_frozen: bool = True,
        isda_layer: int = -1,
        folds: int | None = None,
        compat: bool = False,
        rerank: Rerank | None = None,
    ) -> None:
        require_attributes(network, inputs=Inputs)
        require_signatures(network, RankingNetwork, "model.network")
        objective = objective or MarginRanking()
        require_signatures(objective, MatchingObjective, "model.objective")
        if iais is not None and network.unrelated:
            raise InputError(network.no_relations())
        if rerank is not None and (reason := rerank.refused(network)):
            raise InputError(reason)
        if rerank is not None and folds is not None:
            raise InputError(
                "model.folds: model.rerank chooses from the whole gallery, and not from parts of it; set one to null"
            )
        super().__init__(network, adapter, tuning, train_heads, optimization, init_from, eval_frozen, objective)
        if hard_negatives < 1:
            raise InputError(f"hard_negatives is {hard_negatives}; give at least 1")
        layers = network.num_layers
        if isinstance(network, HasRelations) and not -layers <= isda_layer < layers:
            raise InputError(f"isda_layer is {isda_layer}; the network has layers 0 to {layers - 1} (or -{layers} to -1)")
        if network.inputs.image is None:  # there are no files of regions that one would type
            self.task = replace(self.task, example="print(model.uses)")
        self.hard_negatives = hard_negatives
        self.iais = iais
        self.aligned_layers = [] if iais is None else iais.of_network(layers)
        self.isda_layer = isda_layer % layers if layers else isda_layer
        self.folds = folds
        self.compat = compat
        self.rerank = rerank
        self.full_rank = FullRank()
        self.isda = RelationDistance()
        self.distances = AlignmentDistance()
        self.evenness = RelationEvenness()

    uses = (
        "it looks at an image and a text together and scores the pair, so nothing of it can be indexed; `crosslight test` ranks "
        "all pairs of a split, and model.score_pairs(files, texts) those of files and texts, where it takes pixels"
    )
    task = Task(
        None,
        ("image-text-retrieval", "image-text-matching"),
        'scores = model.score_pairs(["a.jpg", "b.jpg"], ["a dog", "snow"])  # [2, 2], the higher the better',
    )

    def score_pairs(self, paths: Sequence[str | Path], texts: Sequence[str], batch_size: int = 32) -> Tensor:
        """Scores [I, T] (fp32, on the CPU) of every image file with every text, as a validation makes them, on the device where
        the model is. The higher, the better the two fit; their scale is the network's own, so compare those of one text, or of
        one image.

        Args:
            paths: The files.
            texts: The texts. What the model cannot read of them it says in a `TextWarning`.
            batch_size: Images, and texts, that are embedded at once.

        Raises:
            InputError: A file cannot be read, there is no file or no text, or the network takes region features.
        """
        paths, texts = require_files(paths), require_texts(texts)
        if not paths:
            raise InputError("there are no images to score; give at least one.")
        read_images = read_image_files(paths, self.image_input, batch_size)
        read_texts = read_text_list(texts, self.tokenizer, batch_size)
        device = next(self.network.parameters()).device
        with evaluating(self), torch.no_grad():
            of_texts = Ragged.joined([self.network.embed_texts(each.to(device)) for each in read_texts])
            of_images = Ragged.joined([self.network.embed_images(require_readable(each).to(device)) for each in read_images])
            image_P = torch.arange(len(paths)).repeat_interleave(len(texts))
            text_P = torch.arange(len(texts)).repeat(len(paths))
            scores_P = score_pairs_by_length(self.network, of_images, of_texts, image_P, text_P)
        return scores_P.float().cpu().unflatten(0, (len(paths), len(texts)))

    # ----------------------------------------------------------------------------------------------- training

    def training_step(self, batch: RankingBatch, batch_idx: int) -> Tensor:
        """Raises InputError: IAIS sees no positive of what the data train."""
        mined = self.mine(batch)
        images, texts = self._embed_used(batch, mined)
        terms: dict[str, Tensor] = {}
        aligned: list[Tensor] = []
        negatives = {side: Candidates(pairs.image_PX[:, 1:], pairs.text_PX[:, 1:]) for side, pairs in mined.items()}
        negative_PN = self._score(images, texts, negatives)
        for side, pairs in mined.items():
            anchors = () if self.iais is None else self.iais.anchors_of(side)
            positive_P, found = self._score_positives(images, texts, pairs, anchors)
            terms[f"rank_{side}"] = self.objective(torch.cat([positive_P[:, None], negative_PN[side]], dim=1))
            terms |= {f"iais_{anchor}_{side}": loss_P.mean() for anchor, loss_P in found.items()}
            aligned += [loss_P.mean() for loss_P in found.values()]
        loss = torch.stack([terms[f"rank_{side}"] for side in mined]).sum()
        if self.iais is not None:
            weight = self.iais.annealing(self.global_step, int(self.trainer.estimated_stepping_batches))
            terms["iais_weight"] = loss.new_full((), weight)  # on the device: NCCL averages no tensor of the CPU
            if not aligned:
                raise InputError(
                    f"IAIS has no effect: anchors {', '.join(self.iais.anchors)} see the positives of a side that the data do "
                    "not train. Set data.ranking.sides to both, or iais.positives to all."
                )
            loss = loss + weight * self.iais.factor(hard_negatives=True) * torch.stack(aligned).sum()
        terms["loss"] = loss
        self.log_terms(terms, len(batch))
        return loss

    def mine(self, batch: RankingBatch) -> dict[Side, Candidates]:
        """The positives of each side with their `hard_negatives` highest-scored candidates: rows into the batch, [P, 1 + N]."""
        sides: dict[Side, Candidates] = {}
        for side in SIDES:
            candidates: Candidates | None = getattr(batch, side)
            if candidates is not None:
                sides[side] = candidates
        if all(each.image_PX.shape[1] == self.hard_negatives + 1 for each in sides.values()):
            return sides  # there is nothing to choose
        self.network.eval()
        with torch.no_grad():
            images, texts = self.network.embed_images(batch.images), self.network.embed_texts(batch.texts)
            scores = self._score(images, texts, sides)
        self.train()
        mined: dict[Side, Candidates] = {}
        for side, each in sides.items():
            columns_PX = hardest(scores[side], self.hard_negatives)
            mined[side] = Candidates(each.image_PX.gather(1, columns_PX), each.text_PX.gather(1, columns_PX))
        return mined

    def _score(self, images: Ragged, texts: Ragged, sides: dict[Side, Candidates]) -> dict[Side, Tensor]:
        """Scores of all pairs of each side, shaped as they are. One list of pairs for both sides: the more there are, the more
        have the same length, and those are scored together (padded to the longest, half would be padding)."""
        image_P = torch.cat([each.image_PX.flatten() for each in sides.values()])
        text_P = torch.cat([each.text_PX.flatten() for each in sides.values()])
        parts = score_pairs_by_length(self.network, images, texts, image_P, text_P).split(
            [each.image_PX.numel() for each in sides.values()]
        )
        return {side: part.view_as(each.image_PX) for (side, each), part in zip(sides.items(), parts, strict=True)}

    def _embed_used(self, batch: RankingBatch, mined: dict[Side, Candidates]) -> tuple[Ragged, Ragged]:
        """Embed, with gradient, the images and captions that are in a mined pair; `mined` then has rows of these."""
        image_U = torch.unique(torch.cat([each.image_PX.flatten() for each in mined.values()]))
        text_U = torch.unique(torch.cat([each.text_PX.flatten() for each in mined.values()]))
        for side, each in mined.items():
            mined[side] = Candidates(torch.searchsorted(image_U, each.image_PX), torch.searchsorted(text_U, each.text_PX))
        images = self.network.embed_images(_images_at(batch.images, image_U))
        return images, self.network.embed_texts(_texts_at(batch.texts, text_U))

    def _score_positives(
        self, images: Ragged, texts: Ragged, pairs: Candidates, anchors: tuple[Anchor, ...]
    ) -> tuple[Tensor, dict[Anchor, Tensor]]:
        """Scores [P] of a side's positives, and their IAIS [P] for each anchor."""
        positive_images, positive_texts = images.take(pairs.image_PX[:, 0]), texts.take(pairs.text_PX[:, 0])
        if not anchors or self.iais is None:
            row_P = torch.arange(len(positive_texts), device=positive_texts.lengths_B.device)
            return self.network.score_pairs(positive_images, positive_texts, row_P, row_P), {}
        scores_P, relations = self.network.score_related(positive_images, positive_texts, self.aligned_layers)
        return scores_P, self.iais(relations, anchors)

    # --------------------------------------------------------------------------------------------- evaluation

    @property
    def validation_metrics(self) -> Mapping[str, Better]:
        compat: dict[str, Better] = {f"compat_{name}": better for name, better in BETTER.items()} if self.compat else {}
        return {**BETTER, **compat, **dict.fromkeys(_RELATED if isinstance(self.network, HasRelations) else (), None)}

    def _evaluation_step(self, batch: ImageBatch | TextBatch | PairBatch) -> None:
        if isinstance(batch, ImageBatch):
            self.full_rank.add_images(self.network.embed_images(batch), batch.index_B, batch.image_ids)
        elif isinstance(batch, TextBatch):
            texts = self.network.embed_texts(batch)
            self.full_rank.add_texts(texts, batch.index_B, batch.image_index_B, batch.caption_ids)
        elif batch.objects is not None and isinstance(self.network, HasRelations):
            relations: Relations = self.network.relations(batch, [self.isda_layer])
            attended = relations.attention[self.isda_layer]
            self.isda.update(attended, relations.words, relations.regions, batch.objects)
            self.distances.update(attended, relations.words, relations.regions)
            self.evenness.update(attended, relations.words, relations.regions)

    def _evaluation_end(self, stage: str) -> None:
        if self.trainer.sanity_checking:
            self._reset()
            return
        loaders = self.trainer.val_dataloaders if stage == "val" else self.trainer.test_dataloaders
        self.full_rank.progress = getattr(self.trainer, "progress_bar_callback", None) is not None
        self.full_rank.expected_images, self.full_rank.expected_texts = (len(loader.dataset) for loader in loaders[:2])
        weights = ""
        if stage == "test":  # of all tensors, trained or not, and of the precision they are used at
            weights = f"{backbone_fingerprint(self.network, set())['weights']} {self.trainer.precision}"
        with self.trainer.precision_plugin.forward_context():
            values = self.full_rank.compute(self.network, self._store(stage), weights=weights, rerank=self.rerank)
        self._note_folds(self.folds if stage == "test" else None, len(loaders[0].dataset))
        if stage == "test":
            self._note_positives()
            device = next(iter(values.values())).device
            values |= {name: value.to(device) for name, value in self.full_rank.positives(self._positives).items()}
        if self.rerank is not None:
            self.protocol = self.rerank.protocol()
        if stage == "test" and self.folds is not None:
            values |= {f"folds_{name}": value for name, value in self.full_rank.recalls(folds=self.folds).items()}
        if self.compat:
            values |= {f"compat_{name}": value for name, value in self.full_rank.recalls(compat=True).items()}
        self._queries = self.full_rank.query_ranks()
        self._note_certain_recalls(stage, len(loaders[0].dataset))
        if (
            len(loaders) > 2 and len(loaders[2].dataset) and isinstance(self.network, HasRelations)
        ):  # captions that are cut short may name no two objects
            values |= self.isda.compute() | self.distances.compute() | self.evenness.compute()
            self._note_even_attention(stage, values)
        self._reset()
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, rank_zero_only=False, sync_dist=False)

    def _note_even_attention(self, stage: str, values: Mapping[str, Tensor]) -> None:
        """Have results.json say that a distance between two even maps is no alignment."""
        words, regions = (float(values[f"evenness_{side}"]) for side in ("words", "regions"))
        remark = (
            f"attention is all but even, among words ({words:.3f}) and among regions ({regions:.3f}): two even maps agree "
            "whatever there is to see, so these distances are low and say nothing of alignment"
        )
        self._note_remarks(stage, {"ISDa, L(s) and L(d)": remark} if words >= EVEN and regions >= EVEN else {})

    def _reset(self) -> None:
        self.full_rank.reset()
        self.isda.reset()
        self.distances.reset()
        self.evenness.reset()

    def _store(self, stage: str) -> Path | None:
        """Where the score matrix of a test is kept; a validation's is not."""
        if stage != "test":
            return None
        data: Any = getattr(self.trainer, "datamodule", None)
        name = getattr(self.trainer, "evaluated_data", None) or getattr(data, "name", "data")
        return Path(self.trainer.default_root_dir) / "scores" / f"{name}-{stage}"

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._require_first_stage()
        drawn: Any = getattr(getattr(self.trainer, "datamodule", None), "ranking", None)
        if isinstance(drawn, Ranking):  # data of one's own may draw otherwise: then the first batch says it
            require_candidates(self.hard_negatives, drawn.candidates)

    def _require_first_stage(self) -> None:
        """Ranking does not train what only the first stage needs."""
        if self.rerank is None:
            return
        first: FirstStage = self.network  # the constructor has seen to it
        if random := sorted(fresh_parameters(self.network) & first.first_stage_parameters()):
            raise InputError(
                f"model.rerank: {some(random)} are at their random start and ranking does not train them, so candidates would be "
                "chosen by chance. Give weights that have them, or set model.rerank to null."
            )

    def on_test_start(self) -> None:
        """Hours before the recalls would say it.

        Raises:
            InputError: The images do not divide into `folds`, further right answers cannot be read, or the vectors that choose
                pairs for `rerank` are random.
        """
        self._require_first_stage()
        if self.folds is not None:
            require_folds(self.folds, len(self.trainer.test_dataloaders[0].dataset))
        self._take_positives()

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """A pair scorer has no embeddings of its own to write.

        Raises:
            InputError: Always; the message says where the scores are.
        """
        raise InputError(
            f"{type(self.network).__name__} scores pairs and has no embedding of an image alone; `test` keeps its score matrix "
            "in scores/"
        )


def _images_at(batch: ImageBatch, rows: Tensor) -> ImageBatch:
    """Regions or pixels of these images (`image_ids` and `index_B` stay behind: only embedding follows)."""
    regions = batch.regions
    if regions is not None:
        regions = Regions(
            regions.features_BRD[rows], regions.boxes_BR7[rows], regions.confidences_BR[rows], regions.mask_BR[rows]
        )
    pixels_B3HW, sizes_B2 = (None if each is None else each[rows] for each in (batch.pixels_B3HW, batch.sizes_B2))
    return replace(batch, regions=regions, pixels_B3HW=pixels_B3HW, sizes_B2=sizes_B2)


def _texts_at(batch: TextBatch, rows: Tensor) -> TextBatch:
    return replace(batch, tokens_BT=batch.tokens_BT[rows], mask_BT=batch.mask_BT[rows])
