"""The released NeMo, step by step, written from the behaviour of its authors' scripts.

Source: ml-research/localizing_memorization_in_diffusion_models, commit f952ede, scripts 1 to 3 with
utils/activation_detection.py and hooks/block_activations.py. Written without a look at `fbmem_core.neurons`, so that
the two can be compared. It is slow on purpose: each step costs its own U-Net pass, each neuron list is a Python list.

Quirks of the scripts that are kept, because they decide which neurons come out:

1. all seeds of a prompt come from one generator (seed 1), the first `num_samples` draws of it;
2. the second timestep of the schedule is evaluated on latents that no step has touched;
3. the outlier score is |activation - mean| / std, two-sided, and std has Bessel's correction;
4. the threshold falls after each round that misses, and the loop ends as soon as it has become 1: the last round that
   is evaluated has 1.25 and top-15 of each layer, and its similarity is the refinement's threshold;
5. a neuron that is an outlier and among the top k stands twice in the list of its layer, and the refinement takes one
   of the two away at a time;
6. the refinement keeps a removal only if the similarity is below the threshold, not at it;
7. MS-SSIM's data range is left out, so torchmetrics takes it from the data, at each scale and over the whole batch.

Departures, because they would need another machine or another model: float32 in place of CUDA's autocast to float16,
latents as large as the model's own, and an MS-SSIM window that the caller may choose for small latents.
"""

from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

SCALE_WEIGHTS = (0.33, 0.33, 0.33)


@dataclass
class PlainResult:
    """The lists of neurons of each layer, deepest last, and the two similarities; lists may name a neuron twice."""

    initial: list[list[int]]
    refined: list[list[int]]
    initial_similarity: float
    refined_similarity: float
    num_seeds: int
    reached: bool


class PlainReleasedNemo:
    """NeMo for one pipeline with the constants of the released command line."""

    def __init__(self, pipeline, *, threshold=0.428, window=11, num_samples=10, num_inference_steps=50, seed=1):
        self.pipeline = pipeline
        self.threshold = threshold
        self.window = window
        self.num_samples = num_samples
        self.num_inference_steps = num_inference_steps
        self.seed = seed
        self.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        blocks = [attention for block in pipeline.unet.down_blocks for attention in getattr(block, "attentions", [])]
        blocks.append(pipeline.unet.mid_block.attentions[0])
        self.layers = [block.transformer_blocks[0].attn2.to_v for block in blocks]

    @torch.no_grad()
    def text(self, prompt):
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        tokens = tokenizer(
            [prompt], padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        return encoder(tokens.input_ids)[0]

    @torch.no_grad()
    def activations(self, prompt):
        """Mean absolute activation over the tokens, one vector a layer."""
        text = self.text(prompt)
        return [layer(text)[0].abs().mean(dim=0) for layer in self.layers]

    def statistics(self, prompts):
        per_prompt = [self.activations(prompt) for prompt in prompts]
        per_layer = [torch.stack(rows) for rows in zip(*per_prompt, strict=True)]
        return [rows.mean(dim=0) for rows in per_layer], [rows.std(dim=0) for rows in per_layer]

    def noise_difference(self, prompt, blocked=None):
        """Scaled difference of every sample, shape (num_samples, channels, height, width)."""
        handles = []
        for layer, neurons in zip(self.layers, blocked or [[]] * len(self.layers), strict=True):
            if neurons:
                handles.append(layer.register_forward_hook(_zero(neurons)))
        try:
            noise = self._noise(prompt)
        finally:
            for handle in handles:
                handle.remove()
        return self._scaled(noise - self._latents())

    def _latents(self):
        size, channels = self.pipeline.unet.config.sample_size, self.pipeline.unet.config.in_channels
        shape = (self.num_samples, channels, size, size)
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed))
        return drawn.to(self.pipeline.unet.dtype)

    @torch.no_grad()
    def _noise(self, prompt):
        unet, scheduler, latents = self.pipeline.unet, self.scheduler, self._latents()
        scheduler.set_timesteps(self.num_inference_steps)
        timestep = scheduler.timesteps[1]
        text = self.text(prompt).repeat(self.num_samples, 1, 1)
        latents = scheduler.scale_model_input(latents, timestep)
        return unet(latents, timestep, encoder_hidden_states=text, return_dict=False)[0]

    @staticmethod
    def _scaled(difference):
        low = difference.amin(dim=(2, 3), keepdim=True)
        high = difference.amax(dim=(2, 3), keepdim=True)
        return (difference - low) / (high - low)

    def similarity(self, first, second):
        return multiscale_structural_similarity_index_measure(
            first,
            second,
            reduction="none",
            kernel_size=self.window,
            sigma=1.5 * self.window / 11,  # 1.5 for the window of the scripts
            betas=SCALE_WEIGHTS,
        )

    def seeds_above(self, differences):
        """Seeds whose best partner among the others is above the threshold."""
        pairs = torch.combinations(torch.arange(len(differences)), r=2)
        similarity = self.similarity(differences[pairs[:, 0]], differences[pairs[:, 1]])
        best = [similarity[(pairs == seed).any(dim=1)].max() for seed in range(len(differences))]
        return torch.stack(best) > self.threshold

    @torch.no_grad()
    def pairwise_similarities(self, prompts, guidance_scale=7):
        """The second script: of each prompt, of every two samples, with guidance whose two parts are swapped."""
        rows = []
        empty = self._noise("")
        for prompt in prompts:
            plain = self._noise(prompt)
            differences = self._scaled(plain + guidance_scale * (empty - plain) - self._latents())
            pairs = torch.combinations(torch.arange(len(differences)), r=2)
            rows.append(self.similarity(differences[pairs[:, 0]], differences[pairs[:, 1]]))
        return torch.stack(rows)

    def select(self, prompt, statistics, z_score_threshold, num_top):
        mean, std = statistics
        lists = []
        for activation, center, spread in zip(self.activations(prompt), mean, std, strict=True):
            outliers = ((activation - center).abs() / spread > z_score_threshold).nonzero().flatten().tolist()
            top = activation.topk(min(num_top, len(activation))).indices.tolist()
            lists.append(outliers + top)
        return lists

    def localize(self, prompt, statistics):
        """Find the neurons of one prompt; None if no seed is above the threshold."""
        plain = self.noise_difference(prompt)
        seeds = self.seeds_above(plain)
        if not seeds.any():
            return None
        plain = plain[seeds]

        def highest(lists):
            return self.similarity(plain, self.noise_difference(prompt, lists)[seeds]).max()

        z, k, goal, reached = 5.0, 0, self.threshold, False
        while True:
            initial = self.select(prompt, statistics, z, k)
            value = highest(initial)
            if value <= self.threshold:
                reached = True
                break
            z, k = (z - 0.25 if z > 1 else z), k + 1
            if z == 1 or k >= 1280:
                goal = value
                break

        refined = self._refine(initial, highest, goal)
        return PlainResult(initial, refined, float(value), float(highest(refined)), int(seeds.sum()), reached)

    def _refine(self, initial, highest, goal):
        lists = [list(neurons) for neurons in initial]
        for layer in reversed(range(len(lists))):
            if lists[layer]:
                trial = [[] if other == layer else neurons for other, neurons in enumerate(lists)]
                if highest(trial) < goal:
                    lists = trial
        for layer in reversed(range(len(lists))):
            for neuron in list(lists[layer]):
                trial = [list(neurons) for neurons in lists]
                trial[layer].remove(neuron)
                if highest(trial) < goal:
                    lists = trial
        return lists


def _zero(neurons):
    def hook(module, inputs, output):
        output[:, :, neurons] = 0
        return output

    return hook
