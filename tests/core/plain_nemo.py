"""NeMo's localisation as it is described, one test after the other, with nothing saved: what the engine must equal."""

import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure


class PlainNemo:
    """Every test is one pass of the whole U-Net at every seed; the text is encoded by the pipeline's own call."""

    def __init__(self, pipeline, *, mode, num_seeds, height, width):
        self.pipeline, self.unet = pipeline, pipeline.unet
        self.layers = [
            f"{block}.attentions.{attention}.transformer_blocks.0.attn2.to_v"
            for block, attention in [(f"down_blocks.{b}", a) for b in range(3) for a in range(2)] + [("mid_block", 0)]
        ]
        steps = torch.arange(1000, 0, -20) - 1  # DDIM, 50 trailing steps
        self.timestep = steps[1 if mode == "released" else 0]
        draws = [torch.Generator().manual_seed(seed) for seed in range(num_seeds)]
        latents = [torch.randn(1, 4, height // 4, width // 4, generator=draw) for draw in draws]
        self.latents = torch.cat(latents).to(self.unet.dtype)
        self.window = 3  # 16 px latents

    def embed(self, prompt):
        tokens = self.pipeline.tokenizer(
            [prompt], padding="max_length", max_length=self.pipeline.tokenizer.model_max_length,
            truncation=True, return_tensors="pt",
        )  # fmt: skip
        return self.pipeline.text_encoder(tokens.input_ids)[0]

    def activations(self, embeds):
        return [self.unet.get_submodule(layer)(embeds).abs().mean(dim=(0, 1)) for layer in self.layers]

    def statistics(self, prompts):
        each = [self.activations(self.embed(prompt)) for prompt in prompts]
        stacked = [torch.stack(layer) for layer in zip(*each, strict=True)]
        return [layer.mean(dim=0) for layer in stacked], [layer.std(dim=0) for layer in stacked]

    def differences(self, prompt, blocked):
        handles = []
        for layer, neurons in zip(self.layers, blocked, strict=True):

            def switch_off(_module, _input, output, neurons=neurons):
                output[..., neurons] = 0
                return output

            handles.append(self.unet.get_submodule(layer).register_forward_hook(switch_off))
        embeds = self.embed(prompt).expand(len(self.latents), -1, -1)
        difference = self.unet(self.latents, self.timestep, embeds).sample - self.latents
        for handle in handles:
            handle.remove()
        low, high = difference.amin((2, 3), keepdim=True), difference.amax((2, 3), keepdim=True)
        return (difference - low) / (high - low)

    def similarity(self, x, y):
        return multiscale_structural_similarity_index_measure(
            x, y, kernel_size=self.window, sigma=1.5 * self.window / 11, betas=(0.33, 0.33, 0.33), data_range=1.0,
            reduction="none",
        )  # fmt: skip

    def highest_pairs(self, prompt):
        differences = self.differences(prompt, [[]] * len(self.layers))
        others = [[other for other in range(len(differences)) if other != one] for one in range(len(differences))]
        pairs = [
            [self.similarity(differences[[a]], differences[[b]]).item() for b in of] for a, of in enumerate(others)
        ]
        return torch.tensor(pairs).amax(dim=1)

    @torch.no_grad()
    def localize(self, prompt, statistics, threshold):
        """(initial, refined): lists of neurons by layer; None for a prompt that is not memorized."""
        kept = self.highest_pairs(prompt) > threshold
        if not kept.any():
            return None
        unblocked = self.differences(prompt, [[]] * len(self.layers))[kept]

        def highest(blocked):
            return self.similarity(self.differences(prompt, blocked)[kept], unblocked).max().item()

        values = self.activations(self.embed(prompt))
        scores = [(value - mean) / stddev for value, mean, stddev in zip(values, *statistics, strict=True)]
        z_score, top = 5.0, 0
        while True:
            initial = [
                sorted({*(s > z_score).nonzero().flatten().tolist(), *v.topk(top).indices.tolist()})
                for s, v in zip(scores, values, strict=True)
            ]
            reached = highest(initial)
            if reached <= threshold or z_score <= 1:
                break
            z_score, top = z_score - 0.25, top + 1
        allowed = max(threshold, reached)
        blocked = [list(neurons) for neurons in initial]
        for layer in reversed(range(len(blocked))):
            without = [*blocked[:layer], [], *blocked[layer + 1 :]]
            if blocked[layer] and highest(without) <= allowed:
                blocked = without
        for layer in reversed(range(len(blocked))):
            for neuron in list(blocked[layer]):
                without = [[n for n in of if (at, n) != (layer, neuron)] for at, of in enumerate(blocked)]
                if highest(without) <= allowed:
                    blocked = without
        return initial, blocked
