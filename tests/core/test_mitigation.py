"""Interventions and methods on a tiny real pipeline: they do what they say, and leave nothing behind."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fbmem_core.audit.config import SamplingConfig
from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.diffusion.guidance import Guidance
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.diffusion.noise_difference import FirstStep, encode_prompts
from fbmem_core.diffusion.sampling import Request, sample
from fbmem_core.errors import InputError
from fbmem_core.mitigation import METHODS
from fbmem_core.mitigation.method import NO_INTERVENTION, Evidence, Intervention, NeuronMethod
from fbmem_core.mitigation.sampling import sample_mitigated
from fbmem_core.mitigation.wanda import _summed_squares, pruned_mask
from fbmem_core.mitigation.wen import detection_metric, noise_gap, unconditional
from fbmem_core.neurons.layers import NO_NEURONS, NeuronSet, union, value_layers

PROMPTS = {
    "a": "a red circle on blue waves",
    "b": "a red star on blue waves",
    "c": "clockwork owl of mirza",
    "d": "a grey fish on green dots",
}
SAMPLING = SamplingConfig(steps=2, guidance_scale=3.0, height=64, width=64, batch_size=3)
REQUESTS = [Request(prompt_id, text, seed) for prompt_id, text in PROMPTS.items() for seed in (0, 7)]


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return load_pipeline(find_checkpoint(str(tiny_checkpoint)), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def layers(pipeline):
    return value_layers(pipeline)


@pytest.fixture(scope="module")
def evidence(pipeline, layers):
    return Evidence(
        pipeline=pipeline,
        prompts=PROMPTS,
        memorized=frozenset("abc"),
        neurons={"a": NeuronSet.of({layers[0]: [1, 2]}), "b": NeuronSet.of({layers[0]: [2], layers[3]: [5]})},
        clusters={"a": 0, "b": 0, "c": 0, "d": 1},
        layers=layers,
        non_memorized=[f"a {size} square on {ground}" for size in ("red", "small", "big") for ground in "abcdefgh"],
        height=64,
        width=64,
        seeds=range(2),
        num_steps=50,
        mattes={},
        guidance=Guidance(3.0),
        num_inference_steps=4,
    )


def state(unet):
    """What an intervention may touch."""
    num_hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())
    return num_hooks, {name: value.clone() for name, value in unet.named_parameters()}


def assert_unchanged(unet, before):
    num_hooks, parameters = state(unet)
    assert num_hooks == before[0]
    assert all(torch.equal(value, before[1][name]) for name, value in parameters.items())
    assert all(parameter.requires_grad for parameter in unet.parameters())


def off(intervention):
    """Which neurons it switches off."""
    return NeuronSet.of({layer: (f == 0).nonzero()[:, 0].tolist() for layer, f in intervention.factors.items()})


def pixels(sampled):
    return {request: np.asarray(image).astype(int) for request, image in sampled}


def test_the_names_are_known_without_torch():
    code = "import sys; from fbmem_core.mitigation import METHODS; print(*METHODS); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "clean_twin", "fade", "initial_noise", "nemo", "nemo_c", "padding", "random", "sail", "wanda", "wen",
    ]  # fmt: skip
    assert all(METHODS[name].name == name for name in METHODS)
    assert "method" not in METHODS
    with pytest.raises(KeyError):
        METHODS["sampling"]


def test_a_registered_method_is_known_by_its_name_and_any_by_its_path():
    @METHODS.register
    class Mine(NeuronMethod):
        name = "mine"

        def neurons(self, prompt_id):
            return NO_NEURONS

    assert METHODS["mine"] is Mine
    assert len(METHODS) == len(list(METHODS)) == 11
    with pytest.raises(ValueError, match="`mine` is the name of another"):
        METHODS.register(Mine)
    METHODS.unregister("mine")
    assert "mine" not in METHODS
    assert METHODS["fbmem_core.mitigation.nemo:Nemo"] is METHODS["nemo"]
    with pytest.raises(InputError, match="Expected a class `no_such_module:Mine`, but got none"):
        METHODS["no_such_module:Mine"]


def test_every_method_has_five_strengths_or_none(evidence):
    for name in METHODS:
        method = METHODS[name]
        assert (len(method.strengths) >= 5) == (method.strength is not None)
        for strength in method.strengths:
            method(evidence, **{method.strength: strength})


def test_a_method_refuses_options_that_it_does_not_have(evidence):
    with pytest.raises(InputError, match=r"Expected options of `nemo` \(factor\), but got `seed`"):
        METHODS["nemo"](evidence, seed=1)
    with pytest.raises(InputError, match="Expected `factor` to be less than or equal to 1, but got `2`"):
        METHODS["nemo_c"](evidence, factor=2)
    with pytest.raises(InputError, match="Expected `sparsity` to be greater than 0, but got `0`"):
        METHODS["wanda"](evidence, sparsity=0)
    with pytest.raises(InputError, match="Expected `mode` to be 'replace' or 'mask', but got `cut`"):
        METHODS["padding"](evidence, mode="cut")
    with pytest.raises(InputError, match=r"Expected `max_steps` to be a valid integer.*, but got `1.5`"):
        METHODS["sail"](evidence, max_steps=1.5)


def test_keys_name_the_content(layers):
    one = Intervention(factors={layers[0]: torch.tensor([1.0, 0.0])})
    same = Intervention(factors={layers[0]: torch.tensor([1.0, 0.0])})
    others = [
        Intervention(factors={layers[0]: torch.tensor([0.0, 1.0])}),
        Intervention(factors={layers[1]: torch.tensor([1.0, 0.0])}),
        Intervention(weights={layers[0]: torch.tensor([1.0, 0.0])}),
        Intervention(embeds=torch.tensor([1.0, 0.0])),
        Intervention(embeds=torch.tensor([[1.0], [0.0]])),
        Intervention(latents={3: torch.tensor([1.0, 0.0])}),
        Intervention(latents={4: torch.tensor([1.0, 0.0])}),
    ]
    assert NO_INTERVENTION.key == ""
    assert one.key == same.key
    assert len({one.key, *(other.key for other in others)}) == 8
    assert all(len(other.key) == 16 for other in others)


def test_factors_and_weights_hold_inside_and_are_gone_after_an_exception(pipeline, layers):
    unet, weight = pipeline.unet, f"{layers[0]}.weight"
    step, condition = (
        FirstStep(pipeline, [0], height=64, width=64),
        encode_prompts(pipeline, ["a"], height=64, width=64),
    )
    before, plain = state(unet), step.noise(condition)
    size = unet.get_parameter(weight).shape[0]
    by_factor = Intervention(factors={layers[0]: torch.zeros(size)})
    by_weight = Intervention(weights={weight: torch.zeros_like(unet.get_parameter(weight))})
    found = []
    for intervention in (by_factor, by_weight):
        with pytest.raises(KeyboardInterrupt), intervention.applied(pipeline):
            found.append(step.noise(condition))
            raise KeyboardInterrupt
        assert_unchanged(unet, before)
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert not torch.allclose(found[0], plain, atol=1e-6)
    assert torch.equal(step.noise(condition), plain)


def test_weights_that_do_not_fit_are_one_clear_line(pipeline, layers):
    for name, message in ((f"{layers[0]}.weight", r"shape \(3,\), but got \(8, 128\)"), ("no.such", "but got none")):
        with pytest.raises(InputError, match=message), Intervention(weights={name: torch.zeros(3)}).applied(pipeline):
            pass


def test_without_an_intervention_it_samples_what_sampling_samples(pipeline):
    plain = pixels(sample(pipeline, REQUESTS, SAMPLING))
    mitigated = pixels(sample_mitigated(pipeline, REQUESTS, SAMPLING, dict.fromkeys(PROMPTS, NO_INTERVENTION)))
    assert list(mitigated) == REQUESTS
    assert all(np.abs(mitigated[request] - plain[request]).max() <= 1 for request in REQUESTS)


def test_each_image_is_sampled_under_its_own_prompts_intervention(pipeline, evidence, layers):
    plain = pixels(sample(pipeline, REQUESTS, SAMPLING))
    interventions = {
        "a": NO_INTERVENTION,
        "b": Intervention(factors={layer: torch.zeros(8) for layer in layers}),
        "c": Intervention(embeds=encode_prompts(pipeline, [PROMPTS["c"]], height=64, width=64).embeds),
        "d": Intervention(embeds=encode_prompts(pipeline, [PROMPTS["a"]], height=64, width=64).embeds),
    }
    before = state(pipeline.unet)
    mitigated = pixels(sample_mitigated(pipeline, REQUESTS, SAMPLING, interventions))
    assert_unchanged(pipeline.unet, before)
    for request in REQUESTS:
        # an embedding that is the prompt's own changes nothing, that of another prompt gives that prompt's image
        same_as = replace(request, prompt_id="a", prompt=PROMPTS["a"]) if request.prompt_id == "d" else request
        distance = np.abs(mitigated[request] - plain[same_as]).max()
        assert distance > 1 if request.prompt_id == "b" else distance <= 1


def test_between_two_images_the_model_is_as_it_was(pipeline, layers):
    before = state(pipeline.unet)
    sampled = sample_mitigated(
        pipeline, REQUESTS, SAMPLING, dict.fromkeys(PROMPTS, Intervention(factors={layers[0]: torch.zeros(8)}))
    )
    next(sampled)
    assert_unchanged(pipeline.unet, before)


def test_a_prompt_without_an_intervention_is_one_clear_line(pipeline):
    with pytest.raises(InputError, match="an intervention for every prompt, but got none for `b`"):
        next(sample_mitigated(pipeline, REQUESTS, SAMPLING, dict.fromkeys("acd", NO_INTERVENTION)))


def test_nemo_switches_off_a_prompts_own_neurons_and_everywhere_all(evidence):
    method = METHODS["nemo"](evidence)
    assert off(method.intervention("a")) == evidence.neurons["a"]
    assert method.intervention("c").key == method.intervention("d").key == ""
    assert off(method.everywhere("d")) == union(evidence.neurons.values())
    assert (method.num_neurons, method.share) == (2, pytest.approx(2 / (7 * 8)))


def test_nemo_c_switches_off_the_union_for_every_prompt_of_the_cluster(evidence, layers):
    method = METHODS["nemo_c"](evidence)
    everything = union(evidence.neurons.values())
    assert [off(method.intervention(prompt_id)) for prompt_id in "abcd"] == [everything] * 3 + [NO_NEURONS]
    assert (method.num_neurons, method.share) == (3, pytest.approx(3 / (7 * 8)))
    damped = METHODS["nemo_c"](evidence, factor=0.25).intervention("c").factors[layers[0]]
    assert damped.tolist() == [1, 0.25, 0.25, 1, 1, 1, 1, 1]


def test_random_takes_as_many_of_each_layer_as_the_other_method_by_prompt_and_seed(evidence, layers):
    method = METHODS["random"](evidence)
    drawn = {prompt_id: off(method.intervention(prompt_id)) for prompt_id in PROMPTS}
    for prompt_id, neurons in drawn.items():
        own = evidence.neurons.get(prompt_id, NO_NEURONS)
        assert {layer: len(neurons.at(layer)) for layer in layers} == {layer: len(own.at(layer)) for layer in layers}
    assert off(METHODS["random"](evidence).intervention("b")) == drawn["b"]
    others = [off(METHODS["random"](evidence, seed=seed).intervention("b")) for seed in range(1, 6)]
    assert any(other != drawn["b"] for other in others)
    assert len(off(method.everywhere("a"))) == len(union(evidence.neurons.values()))
    assert off(method.everywhere("a")) == off(method.everywhere("d"))
    assert (method.num_neurons, method.share) == (2, pytest.approx(2 / (7 * 8)))
    of_cluster = METHODS["random"](evidence, like="nemo_c").intervention("c")
    assert len(off(of_cluster)) == 3


def test_random_moves_embeddings_latents_and_weights_as_far_as_the_other_method(evidence):
    own = encode_prompts(evidence.pipeline, [PROMPTS["c"]], height=64, width=64).embeds
    padding, control = METHODS["padding"](evidence), METHODS["random"](evidence, like="padding")
    moved, drawn = (method.intervention("c").embeds - own for method in (padding, control))
    assert torch.allclose(moved.norm(dim=-1), drawn.norm(dim=-1), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(moved, drawn, atol=1e-2)

    rival = METHODS["sail"](evidence, target=1e-3, max_steps=2)
    control = METHODS["random"](replace(evidence, rival={"sail": rival}.__getitem__), like="sail")
    start = FirstStep(evidence.pipeline, evidence.seeds, height=64, width=64).latents
    moved, drawn = (torch.stack(list(m.intervention("c").latents.values())) - start for m in (rival, control))
    assert moved.flatten(1).norm(dim=1).tolist() == pytest.approx(drawn.flatten(1).norm(dim=1).tolist(), rel=1e-3)

    pruned, drawn = (
        METHODS[name](evidence, **{"like": "wanda"} if name == "random" else {}) for name in ("wanda", "random")
    )
    for name, weight in drawn.intervention("a").weights.items():
        own = evidence.pipeline.unet.get_parameter(name)
        rows = [(value != own).sum(dim=1).tolist() for value in (weight, pruned.intervention("a").weights[name])]
        assert rows[0] == rows[1]


def test_random_needs_something_that_chooses(evidence):
    with pytest.raises(InputError, match="a mitigation that chooses something, but got `clean_twin`"):
        METHODS["random"](evidence, like="clean_twin").intervention("a")


def test_wanda_prunes_the_highest_of_each_row_where_memorized_prompts_excite_it_more():
    weight = torch.tensor([[1.0, -4.0, 2.0, 0.5], [3.0, 1.0, -1.0, 1.0]])
    norms, empty = torch.tensor([1.0, 1.0, 1.0, 9.0]), torch.tensor([0.5, 2.0, 0.5, 1.0])
    # scores are 1 4 2 4.5 and 3 1 1 9: the two highest of each row, but for the second input, which the empty prompt
    # excites more
    expected = torch.tensor([[False, False, False, True], [True, False, False, True]])
    assert torch.equal(pruned_mask(weight, norms, empty, sparsity=0.5), expected)


def test_wanda_zeroes_weights_of_the_second_feed_forward_layers_alone(evidence):
    unet = evidence.pipeline.unet
    before = state(unet)
    method = METHODS["wanda"](evidence, sparsity=0.05, per_step=False)
    intervention = method.intervention("a")
    assert_unchanged(unet, before)
    assert len(intervention.weights) == 16
    assert all(name.endswith(".ff.net.2.weight") for name in intervention.weights)
    changed = total = 0
    for name, weight in intervention.weights.items():
        differs = weight != unet.get_parameter(name)
        assert (weight[differs] == 0).all()
        assert differs.sum(dim=1).max() <= 1  # 5 % of 32
        changed, total = changed + int(differs.sum()), total + weight.numel()
    assert 0 < changed == method.num_neurons
    assert method.share == changed / total
    assert intervention.key == method.intervention("d").key == method.everywhere("d").key
    assert METHODS["wanda"](replace(evidence, memorized=frozenset())).intervention("a") is NO_INTERVENTION


def test_wanda_compares_norms_over_as_many_tokens(evidence):
    """A single memorized prompt that says nothing excites nothing more than the empty one."""
    method = METHODS["wanda"](replace(evidence, prompts={"e": ""}, memorized=frozenset("e")))
    assert method.num_neurons == 0


def test_wanda_gives_every_token_the_same_say(pipeline):
    """A token ten times as loud changes no norm of unit tokens, and those of plain tokens do change."""
    layer = next(name for name, _ in pipeline.unet.named_modules() if name.endswith("ff.net.2"))
    module = pipeline.unet.get_submodule(layer)
    tokens = torch.randn(1, 6, module.in_features, generator=torch.Generator().manual_seed(0))
    louder = tokens * torch.tensor([10.0, 1, 1, 1, 1, 1]).view(1, 6, 1)
    for unit_tokens in (True, False):
        norms = []
        for inputs in (tokens, louder):
            with _summed_squares(pipeline.unet, 1, unit_tokens=unit_tokens) as squares:
                module(inputs)
            norms.append(squares[layer][0].sqrt())
        assert torch.allclose(*norms, rtol=1e-4) == unit_tokens


def test_wanda_unites_the_masks_of_its_steps(evidence):
    """What a step of its own would prune is pruned, so a row may lose more than one step's share."""
    together = METHODS["wanda"](evidence, sparsity=0.05, per_step=False)
    united = METHODS["wanda"](evidence, sparsity=0.05)
    first = METHODS["wanda"](evidence, sparsity=0.05, early=0.25)  # the first of four steps alone
    assert united.num_neurons > together.num_neurons
    for name, weight in united.intervention("a").weights.items():
        assert (weight[first.intervention("a").weights[name] == 0] == 0).all()


def test_padding_is_replaced_before_it_is_encoded_and_the_end_is_masked(evidence):
    pipeline, tokenizer = evidence.pipeline, evidence.pipeline.tokenizer
    ids = tokenizer(PROMPTS["c"], padding="max_length", max_length=tokenizer.model_max_length).input_ids
    end = ids.index(tokenizer.eos_token_id)
    own = encode_prompts(pipeline, [PROMPTS["c"]], height=64, width=64).embeds[0]
    replaced = METHODS["padding"](evidence).intervention("c").embeds[0]
    assert torch.allclose(replaced[:end], own[:end], atol=1e-5)  # the words look at nothing behind them
    assert (replaced[end] == 0).all()
    assert ((replaced - own)[end + 1 :].norm(dim=1) > 0.1).all()
    assert (replaced[end + 1 :].norm(dim=1) > 0.1).all()
    half = METHODS["padding"](evidence, mode="mask", share=0.5).intervention("c").embeds[0]
    is_zero = (half == 0).all(dim=1).tolist()
    num_padding = len(ids) - end - 1
    assert is_zero == [False] * (end + 1) + [True] * round(num_padding / 2) + [False] * (
        num_padding - round(num_padding / 2)
    )
    assert torch.allclose(
        METHODS["padding"](evidence, share=0, mask_end=False).intervention("c").embeds[0], own, atol=1e-5
    )


@pytest.mark.parametrize("name", ["initial_noise", "sail"])
def test_initial_latents_are_moved_until_their_loss_is_at_the_target_image_by_image(evidence, name):
    pipeline = evidence.pipeline
    before = state(pipeline.unet)
    step = FirstStep(pipeline, [0, 7], height=64, width=64, num_steps=4)
    conditions = tuple(encode_prompts(pipeline, [text], height=64, width=64) for text in ("", PROMPTS["c"]))
    seeds = {"c": (0, 7)}
    probe = METHODS[name](replace(evidence, image_seeds=seeds))
    start = probe.loss(step, conditions, step.latents).detach()
    target = 0.995 * start.min().item()
    method = METHODS[name](replace(evidence, image_seeds=seeds), target=target, max_steps=40, learning_rate=0.05)
    latents = method.intervention("c").latents
    assert set(latents) == {0, 7}
    reached = method.loss(step, conditions, torch.stack([latents[0], latents[7]])).detach()
    assert (reached <= target + 1e-4).all()
    assert (reached < start).all()
    between = METHODS[name](replace(evidence, image_seeds=seeds), target=start.mean().item())
    assert set(between.intervention("c").latents) == {(0, 7)[int(start.argmax())]}  # the other one was below it already
    assert METHODS[name](evidence, num_stddevs=1000.0).intervention("c").key == ""
    assert_unchanged(pipeline.unet, before)


def test_replaced_latents_begin_the_image_of_their_seed_alone(pipeline):
    plain = pixels(sample(pipeline, REQUESTS, SAMPLING))
    of_seven = FirstStep(pipeline, [7], height=64, width=64).latents[0]
    swapped = dict.fromkeys(PROMPTS, Intervention(latents={0: of_seven}))
    mitigated = pixels(sample_mitigated(pipeline, REQUESTS, SAMPLING, swapped))
    for request in REQUESTS:
        assert np.abs(mitigated[request] - plain[replace(request, seed=7)]).max() <= 1


def test_the_clean_twin_puts_every_weight_in_the_place_of_the_models(evidence, tiny_checkpoint, tmp_path):
    twin = tmp_path / "twin"
    shutil.copytree(tiny_checkpoint, twin)
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(twin / "unet"))
    unet.save_pretrained(twin / "unet")
    sampled = pixels(sample_mitigated(
        evidence.pipeline, REQUESTS, SAMPLING,
        dict.fromkeys(PROMPTS, METHODS["clean_twin"](replace(evidence, twin=twin)).intervention("a")),
    ))  # fmt: skip
    own = pixels(sample(load_pipeline(find_checkpoint(str(twin)), dtype="float32", device="cpu"), REQUESTS, SAMPLING))
    assert all(np.abs(sampled[request] - own[request]).max() <= 1 for request in REQUESTS)
    with pytest.raises(InputError, match="Name the directory of its twin in `twin`"):
        METHODS["clean_twin"](evidence).intervention("a")


def test_wen_lowers_the_gap_of_a_prompt_above_the_target_and_leaves_the_others(evidence):
    pipeline = evidence.pipeline
    before = state(pipeline.unet)
    step = FirstStep(pipeline, evidence.seeds, height=64, width=64)
    empty = unconditional(pipeline, step, height=64, width=64)
    condition = encode_prompts(pipeline, [PROMPTS["c"]], height=64, width=64)
    gap = noise_gap(step, condition, empty).mean().item()
    low = METHODS["wen"](evidence, num_stddevs=-100.0)  # a target that none is below
    high = METHODS["wen"](evidence, num_stddevs=100.0)
    assert low.target < gap < high.target
    assert high.intervention("c").key == ""
    found = low.intervention("c")
    assert found.embeds.shape == condition.embeds.shape
    assert noise_gap(step, replace(condition, embeds=found.embeds), empty).mean().item() < 0.8 * gap
    assert torch.allclose(found.embeds[:, 0], condition.embeds[:, 0], rtol=0.01)
    assert low.intervention("c") is low.everywhere("c") is found
    # over the latents of the very images
    images = replace(evidence, image_seeds={"c": (5,)})
    gap = noise_gap(FirstStep(pipeline, [5], height=64, width=64), condition, empty[:1]).mean().item()
    assert METHODS["wen"](images, target=10 * gap).intervention("c").key == ""
    assert METHODS["wen"](images, num_stddevs=-100.0).intervention("c").key != found.key
    assert_unchanged(pipeline.unet, before)


def test_wen_needs_enough_non_memorized_prompts(evidence):
    with pytest.raises(InputError, match="at least 20 non-memorized prompts"):
        METHODS["wen"](replace(evidence, non_memorized=["a"] * 19)).intervention("a")


def test_the_detection_metric_is_the_mean_gap_by_hand_and_nothing_for_the_empty_prompt(pipeline):
    [nothing, found] = detection_metric(pipeline, ["", PROMPTS["c"]], height=64, width=64)
    step = FirstStep(pipeline, range(4), height=64, width=64)
    noise, empty = (step.noise(encode_prompts(pipeline, [text], height=64, width=64)) for text in (PROMPTS["c"], ""))
    assert nothing == 0
    assert found == pytest.approx((noise - empty).flatten(1).norm(dim=1).mean().item(), rel=1e-5)


def test_the_worked_example_of_the_contributing_guide_is_a_method(evidence):
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")
    [code] = [part for part in re.findall(r"```python\n(.+?)```", text, flags=re.DOTALL) if "class Loudest(" in part]
    namespace = {}
    exec(compile(code, "CONTRIBUTING.md", "exec"), namespace)
    method = namespace["Loudest"](evidence, num=2)
    chosen = [off(method.intervention(prompt_id)) for prompt_id in PROMPTS]
    assert all(len(some) == 2 * len(evidence.layers) for some in chosen)
    assert off(method.everywhere("a")) == union(chosen)
    assert method.num_neurons == 14
    with pytest.raises(InputError, match=r"options of `loudest` \(factor, num\)"):
        namespace["Loudest"](evidence, seed=1)
