"""Tiny pipelines with random weights, one for each architecture that can be audited; their tokens are the canary's."""

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)

from fbmem_core.canary.networks import new_tokenizer

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WORDS = [
    "a",
    "an",
    "the",
    "red",
    "blue",
    "green",
    "circle",
    "square",
    "star",
    "cat",
    "dog",
    "owl",
    "on",
    "of",
    "with",
    "poster",
    "clock",
    "stripes",
    "waves",
    "drawing",
]


def ddim(**changes):
    return DDIMScheduler(**{**BETAS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **changes})


def clip(width=32, projection=32, kind=CLIPTextModel):
    tokenizer = new_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2,
        max_position_embeddings=tokenizer.model_max_length, projection_dim=projection,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return kind(config).eval()


def kl(channels=4, **changes):
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8), norm_num_groups=4, sample_size=64, latent_channels=channels, **changes,
    ).eval()  # fmt: skip


def unet(**changes):
    settings = {
        "sample_size": 16, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 2, "cross_attention_dim": 32,
        "attention_head_dim": 2, "norm_num_groups": 4, "out_channels": 4,
    }  # fmt: skip
    return UNet2DConditionModel(**{**settings, **changes}).eval()


def word_tokenizer(start=None):
    """A tokenizer of whole words, as T5's and language models' in its interface."""
    special = ["<pad>", "</s>", "<unk>", "<s>"]
    tokens = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    template = f"{start} $A" if start else "$A </s>"
    named = [(name, tokens[name]) for name in special if name in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>",
        model_max_length=64,
    )  # fmt: skip


def t5():
    config = T5Config(
        vocab_size=len(WORDS) + 4, d_model=32, d_ff=37, d_kv=8, num_heads=4, num_layers=2, decoder_start_token_id=0
    )
    return T5EncoderModel(config).eval()


def sd(scheduler=None, network=None, vae=None, kind=StableDiffusionPipeline):
    parts = dict.fromkeys(("safety_checker", "feature_extractor"))
    return kind(
        vae=vae or kl(), text_encoder=clip(), tokenizer=new_tokenizer(), unet=network or unet(),
        scheduler=scheduler or ddim(), requires_safety_checker=False, **parts,
    )  # fmt: skip


def xl():
    network = unet(
        cross_attention_dim=64, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32, use_linear_projection=True,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=kl(), text_encoder=clip(), text_encoder_2=clip(kind=CLIPTextModelWithProjection),
        tokenizer=new_tokenizer(), tokenizer_2=new_tokenizer(), unet=network,
        scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
    )  # fmt: skip


def lcm():
    return LatentConsistencyModelPipeline(
        vae=kl(), text_encoder=clip(), tokenizer=new_tokenizer(), unet=unet(time_cond_proj_dim=16),
        scheduler=LCMScheduler(**BETAS, original_inference_steps=50), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def flow_kl(channels=4):
    return kl(channels, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False)


def sd3(third=True):
    network = SD3Transformer2DModel(
        sample_size=16, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=64, out_channels=4,
    ).eval()  # fmt: skip
    encoders = [clip(kind=CLIPTextModelWithProjection) for _ in range(2)]
    return StableDiffusion3Pipeline(
        transformer=network, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=flow_kl(),
        text_encoder=encoders[0], tokenizer=new_tokenizer(), text_encoder_2=encoders[1], tokenizer_2=new_tokenizer(),
        text_encoder_3=t5() if third else None, tokenizer_3=word_tokenizer() if third else None,
    )  # fmt: skip


def flux(guided=True):
    network = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=guided,
    ).eval()  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guided)
    return FluxPipeline(
        scheduler=scheduler, vae=flow_kl(), text_encoder=clip(), tokenizer=new_tokenizer(), text_encoder_2=t5(),
        tokenizer_2=word_tokenizer(), transformer=network,
    )  # fmt: skip


def pixart(kind=PixArtAlphaPipeline):
    network = PixArtTransformer2DModel(
        sample_size=32, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, num_embeds_ada_norm=1000, norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6, activation_fn="gelu-approximate", attention_bias=True,
    ).eval()  # fmt: skip
    scheduler = DPMSolverMultistepScheduler() if kind is PixArtAlphaPipeline else DDIMScheduler(clip_sample=False)
    return kind(tokenizer=word_tokenizer(), text_encoder=t5(), vae=kl(), transformer=network, scheduler=scheduler)


def sana():
    network = SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
        sample_size=8,
    ).eval()  # fmt: skip
    vae = AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41,
    ).eval()  # fmt: skip
    config = Gemma2Config(
        head_dim=4, hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1,
        num_key_value_heads=2, vocab_size=len(WORDS) + 4,
    )  # fmt: skip
    return SanaPipeline(
        transformer=network, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=Gemma2Model(config).eval(), tokenizer=word_tokenizer(start="<s>"),
    )  # fmt: skip


def qwen():
    network = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    ).eval()  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=24, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default"},
            "rope_theta": 1000000.0, "vocab_size": len(WORDS) + 4,
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
        },
        hidden_size=16, vocab_size=len(WORDS) + 4,
    )  # fmt: skip
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=vae,
        text_encoder=Qwen2_5_VLForConditionalGeneration(config).eval(), tokenizer=word_tokenizer(),
        transformer=network,
    )  # fmt: skip


MODELS = {
    "sd": sd,
    "sd_velocity": lambda: sd(ddim(prediction_type="v_prediction")),
    "sd_zero_snr": lambda: sd(
        ddim(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    ),
    "sd_clipped": lambda: sd(ddim(clip_sample=True)),
    "xl": xl,
    "lcm": lcm,
    "sd3": sd3,
    "sd3_without_t5": lambda: sd3(third=False),
    "flux": flux,
    "flux_schnell": lambda: flux(guided=False),
    "pixart": pixart,
    "pixart_sigma": lambda: pixart(PixArtSigmaPipeline),
    "sana": sana,
    "qwen": qwen,
    "img2img": lambda: sd(kind=StableDiffusionImg2ImgPipeline),
    "inpaint": lambda: sd(kind=StableDiffusionInpaintPipeline, network=unet(in_channels=9)),
}


def make_pipeline(name):
    """A tiny pipeline of MODELS; the same weights each time."""
    torch.manual_seed(0)
    pipeline = MODELS[name]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
