"""Schedulers that can be audited, and what their models predict, told from a config alone, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fbmem_core.errors import InputError

EPSILON, VELOCITY, SAMPLE, FLOW = "epsilon", "v_prediction", "sample", "flow_prediction"
PREDICTIONS = (EPSILON, VELOCITY, SAMPLE, FLOW)

# whose steps are known here; each samples with its pipeline's own code
SCHEDULERS = (
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
)  # fmt: skip


def prediction_of(config: Mapping[str, Any], class_name: str) -> str:
    """Kind of the model's output; a scheduler of flow matching need not say it."""
    default = FLOW if class_name.startswith("FlowMatch") else EPSILON
    return str(config.get("prediction_type", default))


def check_scheduler(config: Mapping[str, Any], *, where: str | Path) -> None:
    """Refuse what would be answered wrongly.

    Args:
        config: Of scheduler_config.json, `_class_name` included.
        where: The file, for the message.

    Raises:
        InputError: The steps of the scheduler are not known here, or say nothing of x_0.
    """
    name = str(config.get("_class_name", "none"))
    cure = "Save the pipeline with another scheduler, for example DDIMScheduler.from_config(pipeline.scheduler.config)."
    if name not in SCHEDULERS:
        raise InputError(f"a scheduler of {', '.join(SCHEDULERS)}", name, where=where, cure=cure)
    prediction = prediction_of(config, name)
    if prediction not in PREDICTIONS:
        raise InputError(f"a prediction_type of {', '.join(PREDICTIONS)}", prediction, where=where, cure=cure)
    if config.get("rescale_betas_zero_snr") and prediction == EPSILON:
        cure = "Set prediction_type to what the model was trained for: v_prediction."
        raise InputError("v_prediction with zero terminal SNR", prediction, where=where, cure=cure)
    if config.get("timestep_type", "discrete") != "discrete" or config.get("thresholding"):
        got = "continuous timesteps or thresholding"
        raise InputError("discrete timesteps without thresholding", got, where=where, cure=cure)
