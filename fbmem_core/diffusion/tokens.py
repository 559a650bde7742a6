"""Tokens of a prompt that a model reads: behind the last token of its text encoder it is cut, and nothing says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fbmem_core.diffusion.architectures import ARCHITECTURES


def count_tokens(directory: Path, class_name: str, prompts: Sequence[str]) -> tuple[list[int], int]:
    """The tokens of each prompt, special ones included, by the encoder that reads most; and how many that reads.

    Args:
        directory: Of the pipeline; its tokenizers alone are loaded.
        class_name: Of the pipeline.
        prompts: Texts.
    """
    from transformers import AutoTokenizer

    limits = ARCHITECTURES[class_name].token_limits
    names = {name: limit for name, limit in limits.items() if (directory / name).is_dir()}
    best: tuple[list[int], int] = ([0] * len(prompts), 0)
    for name, limit in names.items():
        tokenizer = AutoTokenizer.from_pretrained(directory / name, local_files_only=True)
        num_read = limit or int(tokenizer.model_max_length)
        if num_read > best[1]:
            encoded = tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"] if prompts else []
            best = [len(tokens) for tokens in encoded], num_read
    return best
