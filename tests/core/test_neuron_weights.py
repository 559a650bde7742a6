"""A written checkpoint samples what the hooks sample, and differs in nothing else."""

import numpy as np
import pytest
import torch

from fbmem_core.audit.config import SamplingConfig
from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.diffusion.sampling import Request, sample
from fbmem_core.errors import InputError
from fbmem_core.neurons.hooks import deactivation_factors, scale_neurons
from fbmem_core.neurons.layers import NeuronSet, value_layers
from fbmem_core.neurons.weights import write_mitigated_checkpoint


@pytest.fixture(scope="module")
def neurons(tiny_checkpoint):
    layers = value_layers(loaded(tiny_checkpoint), "all")
    return NeuronSet.of({layers[0]: [0, 3, 7], layers[6]: range(8), layers[12]: [2]})


def loaded(directory):
    return load_pipeline(find_checkpoint(str(directory)), dtype="float32", device="cpu")


@pytest.mark.parametrize("factor", [0.0, 0.1])
def test_a_written_checkpoint_samples_what_the_hooks_sample(tiny_checkpoint, tmp_path, neurons, factor):
    changed = write_mitigated_checkpoint(tiny_checkpoint, tmp_path / "out", neurons, factor=factor)
    assert set(changed) == {f"{layer}.weight" for layer in neurons.indices}
    middle = changed["mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"]
    assert middle == pytest.approx(1 - factor, abs=1e-3)  # a whole layer: all of it
    settings = SamplingConfig(steps=3, guidance_scale=3.0, height=64, width=64)
    requests = [Request("p", "a red circle on blue stripes", seed) for seed in (0, 1)]

    def pixels(pipeline):
        return np.stack([np.asarray(image).astype(int) for _, image in sample(pipeline, requests, settings)])

    pipeline = loaded(tiny_checkpoint)
    plain = pixels(pipeline)
    with scale_neurons(pipeline.unet, deactivation_factors(pipeline.unet, neurons, factor=factor)):
        hooked = pixels(pipeline)
    assert np.abs(pixels(loaded(tmp_path / "out")) - hooked).max() <= 1
    assert np.abs(hooked - plain).max() > 1


def test_nothing_but_the_named_rows_differs(tiny_checkpoint, tmp_path, neurons):
    write_mitigated_checkpoint(tiny_checkpoint, tmp_path / "out", neurons)
    before, after = (loaded(directory).unet.state_dict() for directory in (tiny_checkpoint, tmp_path / "out"))
    for name, weights in before.items():
        some = sorted(neurons.at(name.removesuffix(".weight")))
        kept = [row for row in range(len(weights)) if row not in some]
        assert torch.equal(weights[kept], after[name][kept])
        assert not some or not after[name][some].any()


def test_a_checkpoint_that_lacks_the_neurons_is_left_alone(tiny_checkpoint, tmp_path):
    for neurons, message in (
        (NeuronSet.of({"up.to_v": [1]}), "Expected a tensor `up.to_v.weight`"),
        (NeuronSet.of({"mid_block.attentions.0.transformer_blocks.0.attn2.to_v": [8]}), "Expected neurons below 8"),
    ):
        with pytest.raises(InputError, match=message):
            write_mitigated_checkpoint(tiny_checkpoint, tmp_path / "out", neurons)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="Expected a new folder"):
        write_mitigated_checkpoint(tiny_checkpoint, tmp_path, NeuronSet({}))
