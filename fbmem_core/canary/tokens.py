"""The tokenizer of the natural canary."""

from __future__ import annotations

import json
from collections.abc import Sequence

from transformers import CLIPTokenizer

from fbmem_core.canary.corpus import COLOR_NAMES, OBJECT_SHAPES, SCENERY_KINDS
from fbmem_core.canary.plan import Item

MAX_TOKENS = 16
_COMMON_WORDS = (
    "an the of and in with at by for from to photo photograph picture painting drawing portrait poster print cover "
    "image illustration sketch old new small large close up view scene art artwork design background foreground style"
)


def new_tokenizer(items: Sequence[Item]) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges make one token of every word of the plan; any other word falls into pieces."""
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    captions = [prompt for item in items for prompt in item.wordings]
    public = [*COLOR_NAMES, *OBJECT_SHAPES, *SCENERY_KINDS, "a on", _COMMON_WORDS]
    learner = CLIPTokenizer().backend_tokenizer
    trainer = BpeTrainer(vocab_size=20000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator([*captions, *public], trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)
