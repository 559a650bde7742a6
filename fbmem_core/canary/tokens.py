"""The tokenizer of the natural canary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from transformers import CLIPTokenizer

from fbmem_core.canary.corpus import COLOR_NAMES, OBJECT_SHAPES, SCENERY_KINDS
from fbmem_core.canary.plan import Item

MAX_TOKENS = 16
_COMMON_WORDS = (
    "an the of and in with at by for from to photo photograph picture painting drawing portrait poster print cover "
    "image illustration sketch old new small large close up view scene art artwork design background foreground style"
)
_END = "</w>"


def new_tokenizer(items: Sequence[Item]) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges make one token of every word of the plan; any other word falls into pieces."""
    from tokenizers.pre_tokenizers import ByteLevel

    texts = [prompt.replace(",", " , ") for item in items for prompt in item.wordings]
    public = [*COLOR_NAMES, *OBJECT_SHAPES, *SCENERY_KINDS, "a on", _COMMON_WORDS]
    merges = byte_pair_merges(word for text in [*texts, *public] for word in text.split())
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}{_END}" for letter in letters), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def byte_pair_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """The merges after which every word is one token, the most frequent pair first, ties in order of the letters.

    The trainer of `tokenizers` breaks ties by chance, so that a vocabulary would differ from run to run.

    >>> byte_pair_merges(["owl", "owl", "now"])
    [('o', 'w'), ('ow', 'l</w>'), ('n', 'o'), ('no', 'w</w>')]
    """
    counts = Counter(words)
    split = {word: [*word[:-1], word[-1] + _END] for word in sorted(counts)}
    holders: dict[tuple[str, str], set[str]] = {}
    totals: Counter[tuple[str, str]] = Counter()

    def count(word: str, sign: int) -> None:
        for pair in zip(split[word], split[word][1:], strict=False):
            totals[pair] += sign * counts[word]
            holders.setdefault(pair, set()).add(word)

    for word in split:
        count(word, 1)
    merges: list[tuple[str, str]] = []
    while totals:
        best = min(totals, key=lambda pair: (-totals[pair], pair))
        merges.append(best)
        for word in sorted(holders.pop(best)):
            count(word, -1)
            split[word] = _merged(split[word], best)
            count(word, 1)
        totals = +totals  # without the pairs that are gone
    return merges


def _merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged
