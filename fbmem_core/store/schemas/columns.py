"""Columns that stand in several tables."""

from __future__ import annotations

from fbmem_core.store.schemas.table import INTEGER, REAL, TEXT, Column

AUDIT = Column("audit", TEXT, "name of the audit file")
BACKGROUND_SIMILARITY = Column("background_similarity", REAL, "MS-SSIM of the backgrounds")
CHECKPOINT = Column("checkpoint", TEXT, "partition: the audit's name and the hash of its checkpoint")
CLUSTER = Column("cluster", INTEGER, "number of the cluster, 0 the largest")
ENCODER = Column("encoder", TEXT, "what embedded texts or images")
FOREGROUND_SIMILARITY = Column("foreground_similarity", REAL, "MS-SSIM of the foregrounds")
FULL_SIMILARITY = Column("full_similarity", REAL, "MS-SSIM of the whole images")
HEIGHT = Column("height", INTEGER, "px")
HIGH = Column("high", REAL, "upper end of the 95 % bootstrap interval over units")
LAYER = Column("layer", TEXT, "dotted name in the network")
LOW = Column("low", REAL, "lower end of the 95 % bootstrap interval over units")
MASKING = Column(
    "masking", TEXT, "how a region is compared: masked (its pixels alone) or composite (on black or white)"
)
METHOD = Column("method", TEXT, "mitigation by its name in the audit file; none: the model as it is")
NEURON = Column("neuron", INTEGER, "output feature of the layer, from 0")
NUM_GENERATIONS = Column("num_generations", INTEGER, "images that were counted")
NUM_UNITS = Column("num_units", INTEGER, "independent units: prompts that copy a common reference are one")
NUM_PROMPTS = Column("num_prompts", INTEGER, "prompts that were counted")
PATH = Column("path", TEXT, "file below the store")
PREVIOUS = Column("previous", TEXT, "partition of the checkpoint before it")
PROMPT = Column("prompt", TEXT, "text")
PROMPT_ID = Column("prompt_id", TEXT, "name of the prompt")
REFERENCE_ID = Column("reference_id", TEXT, "name of the reference")
SEED = Column("seed", INTEGER, "of the initial latents of this image")
SHA256 = Column("sha256", TEXT, "of the file")
STDDEV = Column("stddev", REAL, "standard deviation")
WIDTH = Column("width", INTEGER, "px")
# an image: the seed of its initial latents under one prompt and method
IMAGE = (CHECKPOINT, METHOD, PROMPT_ID, SEED)
TRANSFORM = Column("transform", TEXT, "the reference as it was compared: whole, center crop, or how it was moved")
