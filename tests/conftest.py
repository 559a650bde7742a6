"""Fixtures of all tests: a tiny, real Stable Diffusion pipeline, segmenter and SSCD network, all untrained."""

import os
import warnings

# before anything imports huggingface_hub, which reads it once: no test may wait for a network
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# threads of small tensors wait for each other, and tests run side by side; before anything imports torch
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

# the shapes that signatures name are checked by every test that calls them
install_import_hook(["fbmem_core.similarity", "fbmem_core.retrieval.neighbors"], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("fbmem", max_examples=15, deadline=None, derandomize=True)
settings.load_profile("fbmem")


def pytest_collection_modifyitems(items):
    """Files that read the audit of the slice come after others, but for the one that makes it; the small ones last."""
    readers = list(dict.fromkeys(item.path for item in items if "audited" in item.fixturenames))[1:]
    items.sort(key=lambda item: (item.path.parent.name == "core", item.path in readers))


@pytest.fixture(autouse=True)
def _one_thread():
    """Some libraries set the number of threads anew."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_sscd(tmp_path_factory):
    """TorchScript file of a small untrained network with SSCD's interface."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 16, 9, stride=4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(6), torch.nn.Flatten()]
    path = tmp_path_factory.mktemp("models") / "tiny_sscd.pt"
    save_torchscript(torch.nn.Sequential(*layers), path)
    return path


def save_torchscript(network, path):
    """SSCD is published in this format, which torch warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(network).save(str(path))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """Directory of a StableDiffusionPipeline with random weights: 64 px images, SD v1's seven value layers, 3 MB."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from fbmem_core.canary.export import write_checkpoint
    from fbmem_core.canary.networks import TEXT_WIDTH, new_text_encoder, new_tokenizer

    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        sample_size=64,
    )
    directory = tmp_path_factory.mktemp("models") / "tiny"
    write_checkpoint(
        directory, unet=unet, vae=vae.eval(), text_encoder=new_text_encoder(tokenizer).eval(), tokenizer=tokenizer
    )
    return directory


@pytest.fixture(scope="session")
def tiny_segmenter(tmp_path_factory):
    """ONNX file of a segmenter with random weights, steep enough to see both foreground and background."""
    from fbmem_core.canary.export import write_segmenter
    from fbmem_core.canary.networks import Segmenter

    torch.manual_seed(0)
    segmenter = Segmenter(widths=(8, 8, 8)).eval().requires_grad_(False)
    segmenter.head.weight.mul_(40)
    path = tmp_path_factory.mktemp("models") / "segmenter.onnx"
    write_segmenter(segmenter, path)
    return path


@pytest.fixture(scope="session")
def s3_server():
    """A bucket named `audits` on a server of this machine, to which the environment points."""
    from moto.server import ThreadedMotoServer

    from fbmem_core.store.tables import Store

    running = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        Store("s3://audits").root.fs.mkdir("audits")
        yield
    running.stop()
