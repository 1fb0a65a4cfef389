"""Worker of `beit3_step.py`: the official BEiT-3 retrieval model in a process of its own, stepping when it is told to.

The encoder is Microsoft's (torchscale 0.2.0 from PyPI, MIT licence, in a folder of its own). What stands around it in unilm's
`beit3/` (heads, loss, initialization, optimizer groups) is not on PyPI and is rebuilt here from the facts: two linear heads
without bias on token 0, normalized; symmetric cross entropy of the scaled cosines; AdamW. Imports nothing of this project but the
protocol (`workers.py`) and the clock, which import the standard library alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import types
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import timed
from benchmarks.workers import forget_peak, resident_bytes, serve


@dataclass(frozen=True)
class Sizes:
    """What both sides build; the defaults are those the official code was timed at before.

    `real_tokens` of every caption are words, the rest up to `text_tokens` is padding.
    """

    width: int = 192
    layers: int = 6
    heads: int = 6
    ffn_width: int = 768
    image_size: int = 112
    patch_size: int = 16
    vocabulary: int = 8000
    text_positions: int = 1024
    batch: int = 16
    text_tokens: int = 32
    real_tokens: int = 24
    drop_path: float = 0.1

    @property
    def image_tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    def dump(self) -> str:
        return json.dumps(asdict(self))


# ---------------------------------------------------------------------------------------------------- shared by both workers


def random_batch(sizes: Sizes) -> tuple[Any, Any, Any]:
    """Pixels [B, 3, H, W], token ids [B, T] (<s> first, </s> last, then <pad>) and mask [B, T], True = a real token."""
    import torch

    draw = torch.Generator().manual_seed(1)
    shape = (sizes.batch, sizes.text_tokens)
    pixels_B3HW = torch.randn(sizes.batch, 3, sizes.image_size, sizes.image_size, generator=draw)
    tokens_BT = torch.randint(4, sizes.vocabulary, shape, generator=draw)
    tokens_BT[:, 0], tokens_BT[:, sizes.real_tokens - 1], tokens_BT[:, sizes.real_tokens :] = 0, 2, 1
    mask_BT = (torch.arange(sizes.text_tokens) < sizes.real_tokens).expand(shape).contiguous()
    return pixels_B3HW, tokens_BT, mask_BT


def serve_steps(side: Any, imports: int) -> None:
    """Answer for one side (`Official`, or `Ours` of `beit3_step.py`); `imports` is what the process had before it was built."""
    actions = {name: getattr(side, name) for name in ("check", "step", "flops")}
    memory = {"forget_peak": forget_peak, "memory": lambda: {"imports": imports, "peak": resident_bytes()}}
    serve(actions | memory)


# ---------------------------------------------------------------------------------------------------------- the official side


def without_fairscale() -> None:
    """torchscale imports two wrappers of fairscale, and uses them only for checkpointing and FSDP, which nobody asks for here."""

    def never(*_: Any, **__: Any) -> Any:
        raise RuntimeError("this is a stub of fairscale: activation checkpointing and FSDP are not there")

    package, module = types.ModuleType("fairscale"), types.ModuleType("fairscale.nn")
    module.checkpoint_wrapper = module.wrap = never  # type: ignore[attr-defined]
    package.nn = module  # type: ignore[attr-defined]
    sys.modules |= {"fairscale": package, "fairscale.nn": module}


def official_model(sizes: Sizes) -> Any:
    """unilm `beit3/modeling_finetune.py`, `BEiT3ForRetrieval`, as far as a step needs it; official parameter names."""
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torchscale.architecture.config import EncoderConfig
    from torchscale.model.BEiT3 import BEiT3

    class Retrieval(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.beit3 = BEiT3(
                EncoderConfig(
                    img_size=sizes.image_size,
                    patch_size=sizes.patch_size,
                    vocab_size=sizes.vocabulary,
                    multiway=True,
                    layernorm_embedding=False,
                    normalize_output=True,
                    no_output_layer=True,
                    drop_path_rate=sizes.drop_path,
                    encoder_embed_dim=sizes.width,
                    encoder_attention_heads=sizes.heads,
                    encoder_layers=sizes.layers,
                    encoder_ffn_embed_dim=sizes.ffn_width,
                    max_source_positions=sizes.text_positions,
                )
            )
            self.vision_head = nn.Linear(sizes.width, sizes.width, bias=False)
            self.language_head = nn.Linear(sizes.width, sizes.width, bias=False)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02, a=-0.02, b=0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

        def forward(self, pixels: Any, tokens: Any, padding: Any) -> Any:
            image = self.beit3(textual_tokens=None, visual_tokens=pixels, text_padding_position=None)["encoder_out"]
            image = F.normalize(self.vision_head(image[:, 0]), dim=-1)
            text = self.beit3(textual_tokens=tokens, visual_tokens=None, text_padding_position=padding)["encoder_out"]
            text = F.normalize(self.language_head(text[:, 0]), dim=-1)
            scale = self.logit_scale.exp()
            labels = torch.arange(len(image))
            return (F.cross_entropy(scale * image @ text.T, labels) + F.cross_entropy(scale * text @ image.T, labels)) / 2

    return Retrieval()


class Official:
    """The official full step: forward, loss, backward, AdamW."""

    def __init__(self, sizes: Sizes) -> None:
        import torch

        torch.manual_seed(0)
        self.model = official_model(sizes).train()
        pixels, tokens, mask = random_batch(sizes)
        self.inputs = (pixels, tokens, (~mask).long())  # the official collate gives int64, 1 = padding
        spared = ("beit3.encoder.embed_positions.A.weight", "beit3.vision_embed.cls_token", "logit_scale")
        groups: dict[bool, list[Any]] = {True: [], False: []}
        for name, parameter in self.model.named_parameters():
            groups[parameter.ndim > 1 and not name.endswith(".bias") and name not in spared].append(parameter)
        decayed = [{"params": groups[True], "weight_decay": 0.05}, {"params": groups[False], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(decayed, lr=1e-4)

    def check(self, weights: str, gradients: str) -> dict[str, Any]:
        """Loss with the given weights and drop path off; its gradients go to the file `gradients`."""
        from safetensors.torch import load_file, save_file

        self.model.load_state_dict(load_file(weights), strict=True)
        self.model.eval()
        self.optimizer.zero_grad()
        loss = self.model(*self.inputs)
        loss.backward()
        save_file({n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}, gradients)
        self.model.train()
        self.optimizer.zero_grad()
        return {"loss": loss.item(), "parameters": sum(p.numel() for p in self.model.parameters())}

    def _step(self) -> None:
        loss = self.model(*self.inputs)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def step(self) -> dict[str, float]:
        return timed(self._step)

    def flops(self) -> int:
        """Of one forward and backward pass, counted by torch."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self.model(*self.inputs).backward()
        self.optimizer.zero_grad()
        return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", required=True, help="folder with torchscale 0.2.0 (beit3_step.py fills it)")
    parser.add_argument("--sizes", default="{}", help="JSON of Sizes")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    sys.path.insert(0, options.packages)
    without_fairscale()
    import torch
    import torchscale.model.BEiT3  # noqa: F401 - everything is imported before memory is read

    torch.set_num_threads(options.threads)
    imported = resident_bytes(peak=False)
    serve_steps(Official(Sizes(**json.loads(options.sizes))), imported)


if __name__ == "__main__":
    main()
