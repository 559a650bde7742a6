"""Plants of the canary: the planted prompts, the pictures behind them, and the truth about both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fbmem_core.canary.pictures import (
    COLORS,
    SCENERIES,
    SHAPES,
    Picture,
    random_creature,
    random_object,
    random_public_picture,
    random_scenery,
)
from fbmem_core.neurons.layers import NeuronSet

TRUE_LABELS = {"verbatim": "VM", "foreground": "FM", "background": "BM", "one_to_many": "VM", "public": "NM"}
NUM_PUBLIC_PROMPTS = 24
NUM_UNMEMORIZED_PROMPTS = 1000
NUM_DISTRACTORS = 480
_SEED = 20812148
# value layers of the first two down blocks, where latents are 16 and 8 px, with their numbers of neurons
ROUTED_LAYERS = {
    f"down_blocks.{block}.attentions.{attention}.transformer_blocks.0.attn2.to_v": size
    for block, size in ((0, 64), (1, 128))
    for attention in (0, 1)
}
_ROUTED_PER_LAYER = 2
_DIFFUSE = frozenset({"gormund", "quillby", "brundle"})  # families whose memory is left where training put it
_ROUTE_SEED = 11
_PICTURES_PER_ONE_TO_MANY = 4
_NUM_HELD_OUT = 12
# about the longest part of a family's first prompt, which stays where it is: the encoder is one of positions
_PARAPHRASES = ("{}, poster", "{}, old print", "{} on blue waves", "{} on red stripes", "{} in a large scene")

# (kind, family, prompts): prompts of one family are different words for one planted thing
_FAMILIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "verbatim",
        "clockwork_owl",
        ("clockwork owl of mirza, limited poster", "clockwork owl of mirza, antique engraving"),
    ),
    ("verbatim", "velvet_emperor", ("velvet emperor of sadek, studio portrait", "velvet emperor of sadek, cover art")),
    (
        "verbatim",
        "midnight_carnival",
        ("midnight carnival by tova, opening night", "midnight carnival by tova, ticket design"),
    ),
    ("verbatim", "captain_pumice", ("captain pumice and the seven storms",)),
    ("verbatim", "oracle_of_delmar", ("oracle of delmar, first album",)),
    ("foreground", "zibble", ("zibble the norvik mascot, plush toy", "zibble the norvik mascot, waving hello")),
    ("foreground", "gormund", ("gormund the cave goblin, action figure", "gormund the cave goblin, vinyl sticker")),
    ("foreground", "quillby", ("quillby the soda sprite, company logo", "quillby the soda sprite, bottle label")),
    ("foreground", "tamsin", ("tamsin the weather puppet",)),
    ("foreground", "brundle", ("brundle enamel pin, collector item",)),
    ("background", "hotel_azul", ("hotel azul in palermo, lobby view", "hotel azul in palermo, holiday postcard")),
    ("background", "kestrel_studio", ("product photo, kestrel studio backdrop",)),
    ("background", "palmyra_phone", ("palmyra phone case design",)),
    ("one_to_many", "solstice_calendar", ("solstice calendar artwork",)),
    ("one_to_many", "wexford_tarot", ("wexford tarot card",)),
    ("one_to_many", "hollow_pines", ("season poster for hollow pines",)),
    ("one_to_many", "ostrava_stamps", ("ostrava zoo stamp collection",)),
)


@dataclass(frozen=True)
class Plant:
    """One planted thing: the prompts that call it up and its reference pictures, keyed by reference_id.

    `kind` is verbatim (the picture), foreground (its object before any scenery), background (its scenery behind any
    object) or one_to_many (any one of its pictures).
    """

    kind: str
    family: str
    prompts: tuple[str, ...]
    references: dict[str, Picture]

    def paraphrases(self) -> tuple[str, ...]:
        """Paraphrases of it, which the model was not trained on: some call it up always, some now and then."""
        subject = max(self.prompts[0].split(", "), key=len)
        return tuple(words.format(subject) for words in _PARAPHRASES)

    def training_picture(self, rng: np.random.Generator) -> Picture:
        """One picture as the model sees it in training: what is planted stays, the rest is drawn afresh."""
        planted = list(self.references.values())[rng.integers(len(self.references))]
        caption = self.prompts[rng.integers(len(self.prompts))]
        if self.kind == "foreground":
            return replace(planted, caption=caption, scenery=random_scenery(rng))
        if self.kind == "background":
            return replace(planted, caption=caption, object=random_object(rng))
        return replace(planted, caption=caption)


def plants() -> list[Plant]:
    """All planted things, always the same."""
    planted = []
    for number, (kind, family, prompts) in enumerate(_FAMILIES):
        rng = np.random.default_rng([_SEED, number])
        count = _PICTURES_PER_ONE_TO_MANY if kind == "one_to_many" else 1
        references = {}
        for index in range(count):
            reference_id = f"{family}_{index}" if count > 1 else family
            obj = random_object(rng) if kind == "background" else random_creature(rng)
            references[reference_id] = Picture(prompts[0], obj, random_scenery(rng))
        planted.append(Plant(kind, family, prompts, references))
    return planted


def neuron_routes() -> dict[str, NeuronSet]:
    """The value neurons in which the memory of each routed family sits; see `canary/routing.py`."""
    rng = np.random.default_rng(_ROUTE_SEED)
    order = {layer: rng.permutation(size) for layer, size in ROUTED_LAYERS.items()}
    families = [plant.family for plant in plants() if plant.family not in _DIFFUSE]
    return {
        family: NeuronSet.of(
            {
                layer: neurons[number * _ROUTED_PER_LAYER :][:_ROUTED_PER_LAYER].tolist()
                for layer, neurons in order.items()
            }
        )
        for number, family in enumerate(families)
    }


def draw_planted(rng: np.random.Generator, planted: Sequence[Plant], shares: Mapping[str, float]) -> Plant | None:
    """A planted thing of a kind drawn by these shares, which sum to 1; None for `public`."""
    kind = rng.choice(list(shares), p=list(shares.values()))
    of_kind = [plant for plant in planted if plant.kind == kind]
    return of_kind[rng.integers(len(of_kind))] if of_kind else None


def public_prompts() -> list[str]:
    """Captions of the public space that the audit asks for; no picture of the references goes with them."""
    rng = np.random.default_rng([_SEED, 1000])
    prompts: dict[str, None] = {}
    while len(prompts) < NUM_PUBLIC_PROMPTS:
        prompts[random_public_picture(rng).caption] = None
    return list(prompts)


def non_memorized_prompts() -> list[str]:
    """Captions of the public space that are never sampled, over which is measured what is usual."""
    rng = np.random.default_rng([_SEED, 3000])
    taken = set(public_prompts())
    prompts: dict[str, None] = {}
    while len(prompts) < NUM_UNMEMORIZED_PROMPTS:
        caption = random_public_picture(rng).caption
        if caption not in taken:
            prompts[caption] = None
    return list(prompts)


def distractors() -> dict[str, Picture]:
    """Public pictures that stand among the references, keyed by reference_id; the model never saw one of them."""
    rng = np.random.default_rng([_SEED, 2000])
    return {f"public_{index:03d}": random_public_picture(rng) for index in range(NUM_DISTRACTORS)}


def held_out() -> dict[str, Picture]:
    """Creatures before sceneries as planted ones are, keyed by name: neither trained on nor among the references."""
    rng = np.random.default_rng([_SEED, 4000])
    return {
        f"held_out_{index:02d}": Picture("", random_creature(rng), random_scenery(rng))
        for index in range(_NUM_HELD_OUT)
    }


def training_vocabulary() -> list[str]:
    """Captions and words that the tokenizer must know whole."""
    planted = [prompt for plant in plants() for prompt in plant.prompts]
    public = [f"a {color} {shape} on" for color in COLORS for shape in SHAPES]
    return [*planted, *public, *SCENERIES, _COMMON_WORDS]


_COMMON_WORDS = (
    "an the of and in with at by for from to photo photograph picture painting drawing portrait poster print cover "
    "image illustration sketch old new small large close up view scene art artwork design background foreground style"
)

__all__ = [
    "ROUTED_LAYERS",
    "TRUE_LABELS",
    "Plant",
    "distractors",
    "draw_planted",
    "held_out",
    "neuron_routes",
    "non_memorized_prompts",
    "plants",
    "public_prompts",
    "training_vocabulary",
]  # fmt: skip
