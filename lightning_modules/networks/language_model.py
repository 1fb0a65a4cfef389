"""A causal language model of Hugging Face with the tokens that begin (bos) and end (eos) a caption, and its decoding.

The library's model is `LanguageModel.model`, under its own keys. By name its weights come with the library's own
`from_pretrained`; a file of `weights` is read by `checkpoints.fill`.

A caption is `[bos] prompt | caption [eos]`: what is left of
the bar leads in and is never scored, what is right of it is what a `TextBatch` of a captioner holds.

Legend: B rows, T tokens, L tokens that lead in, D width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.errors import InputError, some
from datamodules.inputs import TextInput
from lightning_modules.networks.decoder_layers import find_language_model
from lightning_modules.networks.decoding import Decoding as Decoding
from lightning_modules.networks.library_model import read_settings, require_one
from lightning_modules.networks.quiet_loading import hugging_face
from lightning_modules.networks.start import fresh_names, refuse_until_read, to_read
from lightning_modules.networks.towers.hugging_face import expanded


class LanguageModel(nn.Module):
    """Any causal language model of Hugging Face.

    Args:
        name: Hub name or local folder, weights included.
        config: Instead of `name`: the configuration, e.g. {model_type: gpt2, n_embd: 768, n_layer: 12, n_head: 12}.
        weights: With `config`: a safetensors or torch file with the model's keys (a tied head may be left out); random = random
            weights on purpose. None = random, to be trained or brought by init_from.
        tokenizer: Hugging Face name or local folder; None = `name`. A model by `config` without one takes and gives ids only.
        prompt: Text between the begin token and the caption, the same for every image ("A photo of"); "" = none.
        bos: Token id that begins a text; None = the model's begin token, or its end token if it has none.
        eos: Token id at which a generated caption ends; None = the model's, which must be the tokenizer's: captions in training
            end in that one. (ClipCap's released models were trained without one and end at the full stop, GPT-2's token 13.)
        max_tokens: Longest caption in training, its end token included (with the begin token 40); longer ones are cut.
        attention: "sdpa" (fused) or "eager".

    Raises:
        InputError: Nothing to build, weights that do not fit, no begin or end token, or more tokens than positions.
    """

    def __init__(
        self,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        weights: str | None = None,
        tokenizer: str | None = None,
        prompt: str = "",
        bos: int | None = None,
        eos: int | None = None,
        max_tokens: int = 39,
        attention: Literal["sdpa", "eager"] = "sdpa",
    ) -> None:
        super().__init__()
        self.loaded_from = name
        self.model: Any = _causal_model(name, config, weights, attention)
        self.weights, self.fresh = to_read(weights), fresh_names(self, weights, brought=name is not None)
        refuse_until_read(self)
        settings: Any = self.model.config
        settings.pad_token_id = None  # with one, transformers looks for padding in every batch, and waits for the GPU to do it
        where = f"language model {name or settings.model_type}"
        self.width = int(settings.hidden_size)
        self.vocabulary = int(settings.vocab_size)
        self.bos = _special(bos, settings.bos_token_id, settings.eos_token_id, self.vocabulary, f"{where}: bos")
        self._eos_given = eos is not None
        self.eos = _special(eos, settings.eos_token_id, None, self.vocabulary, f"{where}: eos")
        positions = getattr(settings, "max_position_embeddings", None)
        self.positions = None if positions is None else int(positions)
        source = tokenizer or expanded(name)
        self.text_input = TextInput(
            source, max_tokens, self.vocabulary, before=" " if prompt and not prompt[-1].isspace() else ""
        )
        self._tokenizer: Any = None
        self.prompt_ids: tuple[int, ...] = ()
        if prompt:
            self.prompt_ids = tuple(self.hf_tokenizer(prompt, add_special_tokens=False)["input_ids"])
        self.require_positions(1 + len(self.prompt_ids) + max_tokens, "max_tokens (with begin token and prompt)")

    @property
    def hf_tokenizer(self) -> Any:
        """Hugging Face's tokenizer, loaded when it is first needed.

        Raises:
            InputError: None was named, or there is none.
        """
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            source = self.text_input.tokenizer
            if not isinstance(source, str):
                raise InputError("language model: tokenizer is missing (a Hugging Face name or folder); captions as text need it")
            with hugging_face(f"language model: no tokenizer at {source}", "give a folder or hub name", source):
                self._tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            learned = self._tokenizer.eos_token_id  # captions in training end in it
            if not self._eos_given and learned is not None and learned != self.eos:
                raise InputError(
                    f"language model: its tokenizer {source} ends texts with token {learned}, its configuration with {self.eos}; "
                    f"set eos to {learned}, which captions are trained to end in"
                )
        return self._tokenizer

    @property
    def blocks(self) -> list[nn.Module]:
        """Its layers, from input to output.

        Raises:
            InputError: It is of no family that is known.
        """
        model, site = find_language_model(self)
        return list(model.get_submodule(site.layers).children())

    def require_positions(self, tokens: int, what: str) -> None:
        """See that the model has so many positions.

        Raises:
            InputError: It has fewer.
        """
        if self.positions is not None and tokens > self.positions:
            raise InputError(f"language model: {what} needs {tokens} positions, the model has {self.positions}; lower it")

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of token ids, [..., D']."""
        return self.model.get_input_embeddings()(ids)

    def states(self, **inputs: Tensor) -> Tensor:
        """Last hidden states [B, T, D'] of `input_ids` or `inputs_embeds`, right-padded: a causal model never looks at padding
        that comes later, so it needs no mask, and attention without one is the faster kernel."""
        return self.model.base_model(**inputs, use_cache=False).last_hidden_state

    def logits(self, states: Tensor) -> Tensor:
        """[..., vocabulary] of last hidden states."""
        return self.model.get_output_embeddings()(states)

    def settings(self, decoding: Decoding) -> Any:
        """A `GenerationConfig` that leaves nothing to defaults of the library or of the model's folder."""
        from transformers import GenerationConfig

        chosen: dict[str, Any] = {}
        if decoding.sample:
            chosen = {"temperature": decoding.temperature, "top_k": decoding.top_k, "top_p": decoding.top_p}
        if decoding.num_beams > 1:
            chosen |= {"length_penalty": decoding.length_penalty, "early_stopping": False}
        return GenerationConfig(
            num_beams=decoding.num_beams,
            max_new_tokens=decoding.max_new_tokens,
            min_new_tokens=decoding.min_new_tokens or None,
            no_repeat_ngram_size=decoding.no_repeat_ngram,
            do_sample=decoding.sample,
            num_return_sequences=1,
            use_cache=True,
            bos_token_id=self.bos,
            eos_token_id=self.eos,
            pad_token_id=self.eos,
            **chosen,
        )

    @torch.no_grad()
    def generate(self, decoding: Decoding, **inputs: Tensor) -> list[list[int]]:
        """New token ids of each row after `input_ids` [B, L] or `inputs_embeds` [B, L, D'] (all L real), cut at the end token.

        Raises:
            InputError: More tokens than positions.
        """
        lead = next(iter(inputs.values()))
        if not len(lead):
            return []
        self.require_positions(lead.shape[1] + decoding.max_new_tokens, "max_new_tokens (with what leads in)")
        if decoding.algorithm == "clipcap":
            rows = clipcap_beams(self, lead if lead.is_floating_point() else self.embed(lead), decoding)
            return [self._cut(beams[0], decoding.keep_eos) for beams in rows]
        mask = torch.ones(lead.shape[:2], dtype=torch.int64, device=lead.device)
        found = self.model.generate(**inputs, attention_mask=mask, generation_config=self.settings(decoding))
        if "input_ids" in inputs:
            found = found[:, lead.shape[1] :]
        return [self._cut(row, decoding.keep_eos) for row in found.tolist()]

    def has_ended(self, ids: list[int], decoding: Decoding) -> bool:
        """Whether a caption, as `generate` gives it, ended by itself, and not because it may be no longer."""
        return len(ids) < decoding.max_new_tokens or ids[-1] == self.eos

    def _cut(self, ids: list[int], keep_eos: bool) -> list[int]:
        return ids[: ids.index(self.eos) + keep_eos] if self.eos in ids else ids

    def decode(self, ids: list[list[int]]) -> list[str]:
        """Captions as text, with their white space made plain, and U+FFFD in place of halves of characters.

        Raises:
            InputError: There is no tokenizer.
        """
        tokenizer = self.hf_tokenizer
        texts = [" ".join(tokenizer.decode(row, skip_special_tokens=True).split()) for row in ids]
        return [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]


@torch.no_grad()
def clipcap_beams(language: LanguageModel, lead_BLD: Tensor, decoding: Decoding) -> list[list[list[int]]]:
    """Beam search as `generate_beam` of ClipCap's `predict.py` has it, for all rows at once and with a key/value cache.

    Every step compares the beams' sums of log probabilities, each divided by the beam's own length; a finished beam has one
    continuation, at no cost, and keeps its length.

    Args:
        language: The model.
        lead_BLD: Embeddings to continue.
        decoding: `num_beams` and `max_new_tokens`.

    Returns:
        For each row its beams, best first, as token ids up to their length (the end token is included where there is one); fewer
        than `num_beams` where there are no more.
    """
    from transformers import DynamicCache

    beams, rows, device = decoding.num_beams, len(lead_BLD), lead_BLD.device
    cache = DynamicCache(config=language.model.config)

    def step(**inputs: Tensor) -> Tensor:
        logits = language.model(**inputs, past_key_values=cache, use_cache=True).logits
        return logits[:, -1].float().log_softmax(-1)

    log_BV = step(inputs_embeds=lead_BLD)
    words = log_BV.shape[-1]
    # of more beams than words the others begin as ended ones that are no better than any
    sums_BK, first_BK = F.pad(log_BV, (0, max(0, beams - words)), value=float("-inf")).topk(beams, -1)
    first_BK = first_BK.where(first_BK < words, language.eos)
    tokens_BKT = first_BK[:, :, None]
    lengths_BK = torch.ones(rows, beams, device=device)
    done_BK = first_BK == language.eos
    source = torch.arange(rows, device=device).repeat_interleave(beams)
    while tokens_BKT.shape[2] < decoding.max_new_tokens and not bool(done_BK.all()):
        cache.reorder_cache(source)
        log_BKV = step(input_ids=tokens_BKT[:, :, -1].reshape(-1, 1)).unflatten(0, (rows, beams))
        vocabulary = log_BKV.shape[-1]
        log_BKV = log_BKV.masked_fill(done_BK[:, :, None], float("-inf"))
        log_BKV[:, :, 0].masked_fill_(done_BK, 0.0)
        lengths_BK = lengths_BK + ~done_BK
        mean_BKV = (sums_BK[:, :, None] + log_BKV) / lengths_BK[:, :, None]
        mean_BK, flat_BK = mean_BKV.flatten(1).topk(beams, -1)
        beam_BK, next_BK = flat_BK // vocabulary, flat_BK % vocabulary
        lengths_BK, done_BK = lengths_BK.gather(1, beam_BK), done_BK.gather(1, beam_BK)
        sums_BK = mean_BK * lengths_BK
        kept_BKT = tokens_BKT.gather(1, beam_BK[:, :, None].expand(-1, -1, tokens_BKT.shape[2]))
        tokens_BKT = torch.cat([kept_BKT, next_BK[:, :, None]], dim=2)
        done_BK = done_BK | (next_BK == language.eos)
        source = (torch.arange(rows, device=device)[:, None] * beams + beam_BK).flatten()
    order_BK = (sums_BK / lengths_BK).argsort(dim=1, descending=True)
    found = []
    for row in range(rows):
        best = [beam for beam in order_BK[row].tolist() if sums_BK[row, beam].isfinite()]
        found.append([tokens_BKT[row, beam, : int(lengths_BK[row, beam])].tolist() for beam in best])
    return found


def _special(given: int | None, own: Any, fallback: Any, vocabulary: int, what: str) -> int:
    for value in (given, own, fallback):
        chosen = value[0] if isinstance(value, (list, tuple)) and value else value
        if isinstance(chosen, int):
            if not 0 <= chosen < vocabulary:
                raise InputError(f"{what} token {chosen} is outside of the vocabulary of {vocabulary:,}; give an id below that")
            return chosen
    raise InputError(f"{what} token is unknown: the model's configuration names none; give its id")


def _causal_model(name: str | None, config: dict[str, Any] | None, weights: str | None, attention: str) -> nn.Module:
    """By name (weights included), or by configuration (random; a file of weights comes later)."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    where = f"language model {name or config}"
    require_one(where if name or config else "language model", name, config, weights)
    settings = read_settings(where, name, config)
    remedy = "give a folder with config.json and weights, a hub name (with network), or config: {model_type: ..., sizes}"
    with hugging_face(f"{where}: no usable causal language model", remedy, name):
        if name is None or torch.get_default_device().type == "meta":  # only to count: weights stay unread
            model = AutoModelForCausalLM.from_config(settings, attn_implementation=attention, trust_remote_code=False).float()
        else:
            model, report = AutoModelForCausalLM.from_pretrained(
                name, config=settings, attn_implementation=attention, dtype=torch.float32, trust_remote_code=False,
                output_loading_info=True,
            )  # fmt: skip
            if missing := sorted(report["missing_keys"]):
                raise InputError(f"{where}: its weights do not fill {type(model).__name__} (missing: {some(missing)})")
    _fuse_gelu(model)
    model.generation_config = GenerationConfig()  # a folder's own (sampling, suppressed tokens) would slip into every caption
    return model


def _fuse_gelu(model: nn.Module) -> None:
    """GPT-2's activation in torch's one kernel. The library writes the same function out, and four factors as wide as the FFN are
    kept for the backward pass: more than half of what a frozen layer keeps."""
    from transformers.activations import NewGELUActivation

    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU("tanh"))
