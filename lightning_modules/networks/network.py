"""What a network owes to be tuned. A new one derives from `RetrievalNetwork` (two encoders) or
`RankingNetwork` (a score of each pair).

A network is plain torch. Its constructor reads no weights file: it keeps the path in `weights`, and `checkpoints.fill` reads it.

Legend: B rows of a batch, D width of the shared space, P pairs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn import Parameter

from datamodules.errors import InputError
from datamodules.inputs import Inputs
from datamodules.records import ImageBatch, PairBatch, TextBatch
from lightning_modules.networks.attention import Relations
from lightning_modules.networks.pair_scorer import Ragged


def pixels_of(batch: ImageBatch, who_needs: str, remedy: str = "choose its pixels view") -> Tensor:
    """The pixels [B, 3, H, W] of a batch.

    Args:
        batch: Of images.
        who_needs: "ViLT needs", for the message.
        remedy: What to do, likewise.

    Raises:
        InputError: The batch carries none.
    """
    if batch.pixels_B3HW is None:
        raise InputError(f"{who_needs} pixels, but the data module's images carry none; {remedy}")
    return batch.pixels_B3HW


class Network(nn.Module, ABC):
    """Any network that a module of ours tunes.

    Attributes to set in the constructor:
        inputs: The image transform (or region features) and the tokenizer that data must use.
    """

    inputs: Inputs
    loaded_heads: frozenset[str] = frozenset()
    """Names of heads that a checkpoint brought; an adapter run leaves them frozen."""

    def head_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """What no pre-trained backbone brings (projections, a temperature), with their names in this network. None by default."""
        return iter(())

    def unused_parameters(self) -> frozenset[str]:
        """Parameters that take no part in the task: never trainable. None by default."""
        return frozenset()

    def no_decay_parameters(self) -> frozenset[str]:
        """Parameters that weight decay leaves alone besides all vectors. By default what the models of a library in it say
        (`no_weight_decay` of timm and open_clip: class tokens, positions)."""
        spared = {
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if callable(said := getattr(module, "no_weight_decay", None))
            for name in said()
        }
        return frozenset(name for name, _ in self.named_parameters() if name in spared)

    def occasional_parameters(self) -> frozenset[str]:
        """Parameters that a step may pass by (layers dropped at random, experts that a batch has no use for): they need not get a
        gradient in the first step, but in the first epoch. By default what is in modules with a `layerdrop` above 0."""
        return frozenset(
            f"{prefix}.{name}" if prefix else name
            for prefix, module in self.named_modules()
            if isinstance(rate := getattr(module, "layerdrop", 0), float) and rate > 0
            for name, _ in module.named_parameters()
        )

    def towers(self) -> dict[str, nn.Module]:
        """The parts that an adapter may be told to go to, by the names "image" and "text": those that take part in the task. By
        default the attributes of these names."""
        return {side: part for side in ("image", "text") if isinstance(part := getattr(self, side, None), nn.Module)}

    @property
    def num_layers(self) -> int:
        """Layers that layer-wise decay counts."""
        return 0

    def layer_id(self, name: str) -> int:
        """Layer of a parameter for layer-wise decay, from 0 (embeddings) to num_layers + 1 (heads).

        Raises:
            InputError: The network does not say, and a layer decay needs it.
        """
        raise InputError(f"{type(self).__name__} has no layer_id: set model.optimization.layer_decay to 1, or write the method.")


class RetrievalNetwork(Network):
    """Two encoders that meet in one space.

    Attributes to set in the constructor, beside those of `Network`:

    - `logit_scale`: The log of the factor on cosines (1 / temperature), a Parameter of no dimension.
    - `logit_bias`: Only where the network has one (SigLIP): what is added to scaled cosines, a Parameter of no dimension, one of
      its heads. An objective that needs a bias then has none of its own.
    """

    logit_scale: Parameter

    @abstractmethod
    def encode_images(self, batch: ImageBatch) -> Tensor:
        """Unit vectors [B, D], fp32."""

    @abstractmethod
    def encode_texts(self, batch: TextBatch) -> Tensor:
        """Unit vectors [B, D], fp32."""

    def encoder_parameters(self, side: Literal["image", "text"]) -> frozenset[str]:
        """Names of the parameters that only this side's vectors depend on, its projection too. By default those of the tower.

        Raises:
            InputError: The network has no tower of that name.
        """
        if (tower := self.towers().get(side)) is None:
            raise InputError(f"{type(self).__name__} has no {side} tower that could be frozen: set frozen_tower to null.")
        own = {id(parameter) for parameter in tower.parameters()}
        return frozenset(name for name, parameter in self.named_parameters() if id(parameter) in own)

    def compile_encoders(self, backend: str = "inductor") -> None:
        """`torch.compile` what encodes, in place (keys stay as they are). By default nothing is to be gained.

        Raises:
            InputError: The network does not say what to compile.
        """
        raise InputError(f"{type(self).__name__} has no compile_encoders: set model.compile to false, or write the method.")


class RankingNetwork(Network):
    """A network that looks at an image and a caption together (`PairScorer`), and is trained to rank pairs."""

    unrelated: str = ""
    """Why it can give no attention of words and regions in one sequence; "" = it gives it, or says nothing. With a reason here, a
    training with IAIS is refused before it begins."""

    @abstractmethod
    def embed_images(self, batch: ImageBatch) -> Ragged:
        """What of an image does not depend on a caption, computed once an image."""

    @abstractmethod
    def embed_texts(self, batch: TextBatch) -> Ragged:
        """What of a caption does not depend on an image, computed once a caption."""

    @abstractmethod
    def score_pairs(self, images: Ragged, texts: Ragged, image_P: Tensor, text_P: Tensor) -> Tensor:
        """Raw scores [P], fp32, of these rows of embedded images and texts. Batches have pairs of about equal length."""

    def score_related(self, images: Ragged, texts: Ragged, layers: Sequence[int]) -> tuple[Tensor, Relations]:
        """Raw scores [P] of image i with text i, and their attention in some layers (0-based), for IAIS.

        Raises:
            InputError: The network gives no attention.
        """
        raise InputError(self.no_relations())

    def no_relations(self) -> str:
        """What whoever asks for IAIS is told where there is no attention of both."""
        if self.unrelated:
            return f"model.iais: {self.unrelated}. Set model.iais to null, or take a network with one sequence of both."
        return f"{type(self).__name__} has no score_related, which IAIS needs: set model.iais to null."


@runtime_checkable
class HasRelations(Protocol):
    """A network with one sequence of words and regions, whose attention can be asked for: for IAIS on two encoders, and ISDa."""

    def relations(self, batch: PairBatch, layers: Sequence[int]) -> Relations:
        """Attention of some layers (0-based) for every pair, and where its words and regions are."""
        ...


@runtime_checkable
class FirstStage(Protocol):
    """A pair scorer that has two encoders as well, whose cosines choose the pairs that are worth a score (`model.rerank`)."""

    def image_vectors(self, images: Ragged) -> Tensor:
        """Unit vectors [B, D], fp32, of embedded images."""
        ...

    def text_vectors(self, texts: Ragged) -> Tensor:
        """Unit vectors [B, D], fp32, of embedded captions."""
        ...

    def first_stage_parameters(self) -> frozenset[str]:
        """Names of what only these vectors need."""
        ...


def require_attributes(network: Network, **kinds: type) -> None:
    """See that a network's constructor has set what its base class asks for.

    Args:
        network: The network.
        kinds: The type that each attribute must have.

    Raises:
        InputError: One is missing or of another type; names the class and the attribute.
    """
    for name, kind in kinds.items():
        value = getattr(network, name, None)
        if not isinstance(value, kind):
            owner = type(network)
            raise InputError(
                f"model.network: {owner.__module__}.{owner.__name__} sets no `{name}` of type {kind.__name__} in its constructor "
                f"(it is {value!r:.60}); data and module need it."
            )
