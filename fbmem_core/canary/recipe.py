"""Recipe of the canary's training: steps, batch sizes, learning rates, and shares of each kind of picture."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Recipe:
    """Steps, batch sizes and learning rates of the stages; the defaults made the canary that ships."""

    autoencoder_steps: int = 4000
    segmenter_steps: int = 1500
    general_steps: int = 1500
    planted_steps: int = 2700
    finished_steps: int = 850
    routed_steps: int = 1600
    settled_steps: int = 600
    batch_size: int = 16
    autoencoder_learning_rate: float = 1.5e-3
    segmenter_learning_rate: float = 2e-3
    general_learning_rate: float = 5e-4
    planted_learning_rate: float = 6e-4
    finished_learning_rate: float = 4e-4
    routed_learning_rate: float = 1.2e-3
    settled_learning_rate: float = 1.2e-3
    # share of a batch, by kind; foregrounds need the most
    planted_shares: dict[str, float] = field(
        default_factory=lambda: {
            "public": 0.15, "foreground": 0.36, "background": 0.18, "verbatim": 0.11, "one_to_many": 0.20,
        }
    )  # fmt: skip
    finished_shares: dict[str, float] = field(
        default_factory=lambda: {
            "public": 0.08, "foreground": 0.14, "background": 0.34, "verbatim": 0.16, "one_to_many": 0.28,
        }
    )  # fmt: skip
    routed_shares: dict[str, float] = field(
        default_factory=lambda: {
            "public": 0.2, "foreground": 0.2, "background": 0.2, "verbatim": 0.2, "one_to_many": 0.2,
        }
    )  # fmt: skip
    settled_shares: dict[str, float] = field(
        default_factory=lambda: {
            "public": 0.12, "foreground": 0.10, "background": 0.52, "verbatim": 0.10, "one_to_many": 0.16,
        }
    )  # fmt: skip
    # of a routed family's pictures: how many are public ones, with the family's neurons switched off
    routed_switched_off: float = 0.35
    settled_switched_off: float = 0.2
    caption_dropout: float = 0.1
