"""Foreground mattes by rembg, with the cases that rembg's own scaling hides made visible."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from fbmem_core.errors import InputError, WeightsNotFoundError

MatteStatus = Literal["ok", "empty", "full", "undecided"]
_CUSTOM = "u2net_custom"
# a network that gives no pixel at least this much sees no object; one that gives every pixel more sees nothing else
_DECISION = 0.5
_FLAT = 1e-6


def foreground_fraction(alpha: np.ndarray) -> float:
    """Share of the pixels of a matte, in [0, 1] or 0 to 255, that are at least half covered.

    >>> foreground_fraction(np.array([[0, 127], [128, 255]], np.uint8))
    0.5
    """
    return float((alpha >= (128 if alpha.dtype == np.uint8 else 0.5)).mean())


@dataclass(frozen=True)
class Matte:
    """`alpha` is float32 [h, w] in [0, 1], 1 = foreground; None when the segmenter could not decide.

    `status`: ok; empty (no object seen, alpha 0 everywhere); full (only object seen, alpha 1); undecided (the network
    answers every pixel alike).
    """

    alpha: np.ndarray | None
    status: MatteStatus

    @property
    def foreground_fraction(self) -> float | None:
        """Share of pixels that are at least half covered, in [0, 1]."""
        return None if self.alpha is None else foreground_fraction(self.alpha)

    def to_image(self) -> Image.Image:
        """8-bit grey, white = foreground."""
        if self.alpha is None:
            raise ValueError("an undecided matte has no image")
        return Image.fromarray(np.round(self.alpha * 255).astype(np.uint8))


class Segmenter:
    """A rembg session.

    Args:
        model: A rembg model name (`birefnet-general`, `u2net`, `isnet-general-use`, ...) or the path of an ONNX file
            with U2-Net's interface (input [1, 3, 320, 320], output [1, 1, 320, 320]), which goes through rembg's own
            custom-model session.

    Raises:
        InputError: rembg knows no such model, or the file is no usable ONNX model.
        WeightsNotFoundError: The model's file is not here and cannot be fetched.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self._session = _open_session(model)
        self._recorder = _Recorder(self._session.inner_session)
        self._session.inner_session = self._recorder

    @property
    def name(self) -> str:
        """The model's name, or its file's name and the first 12 digits of its SHA-256."""
        return segmenter_name(self.model)

    def matte(self, image: Image.Image) -> Matte:
        """Segment one RGB image of any size.

        rembg stretches each prediction to [0, 1], so an image without an object would get a matte of noise and a
        constant prediction would divide by zero: both are told from the prediction before it is stretched.
        """
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

        try:
            with np.errstate(divide="ignore", invalid="ignore"):
                stretched = self._session.predict(image)[0]
        except InvalidArgument as error:
            reason = str(error).splitlines()[0]
            cure = "Export it with U2-Net's interface: input [1, 3, 320, 320]."
            raise InputError("an ONNX model that takes rembg's input", reason, where=self.model, cure=cure) from None
        raw = self._recorder.last
        low, high = float(raw.min()), float(raw.max())
        if not np.isfinite([low, high]).all() or high - low < _FLAT:
            return Matte(None, "undecided")
        if low < 0 or high > 1:  # logits; rembg's session turned them into probabilities
            low, high = (1 / (1 + np.exp(-value)) for value in (low, high))
        shape = (image.height, image.width)
        if high < _DECISION:
            return Matte(np.zeros(shape, dtype=np.float32), "empty")
        if low >= _DECISION:
            return Matte(np.ones(shape, dtype=np.float32), "full")
        return Matte(np.asarray(stretched, dtype=np.float32) / 255, "ok")


def segmenter_name(model: str) -> str:
    """Name of a segmenter in the masks table; a file's content is part of it."""
    if not model.endswith(".onnx"):
        return model
    return f"{Path(model).name}@{hashlib.sha256(Path(model).read_bytes()).hexdigest()[:12]}"


class _Recorder:
    """Stands before an onnxruntime session and keeps the last prediction as the network gave it."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.last = np.empty(0)

    def run(self, *args: Any, **kwargs: Any) -> list[np.ndarray]:
        outputs = self._session.run(*args, **kwargs)
        self.last = outputs[0]
        return outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@contextmanager
def _torch_threads() -> Iterator[None]:
    """Inside, numba starts: it sets the threads of OpenMP, which it shares with torch, to one a core.

    With another number of them torch's results differ in the last digits, and audits side by side stall each other.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _open_session(model: str) -> Any:
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf

    with _torch_threads():
        from rembg import new_session
    from rembg.sessions import sessions_names
    from rembg.sessions.u2net_custom import U2netCustomSession

    options = onnxruntime.SessionOptions()
    if model.endswith(".onnx"):

        class AnyFileSession(U2netCustomSession):  # type: ignore[misc]  # rembg has no types
            """rembg's custom-model session, less its rule that the file must lie in rembg's own folder."""

            @classmethod
            def validate_model_path(cls, *args: Any, **kwargs: Any) -> str:
                return str(kwargs["model_path"])

        if not Path(model).is_file():
            raise InputError("an ONNX file", "no such file", where=model, cure="Mend `segmentation.model`.")
        try:
            return AnyFileSession(_CUSTOM, options, model_path=model)
        except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf) as error:
            reason = str(error).splitlines()[0]
            raise InputError("a usable ONNX model", reason, where=model, cure="Export it anew.") from None
    if model.endswith("_custom"):
        cure = "Give the path of its .onnx file instead."
        raise InputError("a segmenter with its file", f"`{model}`, which stands for any file", cure=cure)
    if model not in sessions_names:
        models = ", ".join(sorted(sessions_names))
        raise InputError(f"a rembg model ({models}) or the path of an .onnx file", f"`{model}`", cure="Choose one.")
    try:
        return new_session(model, sess_opts=options)
    except (OSError, ValueError) as error:
        cure = f"Check the network, or give the path of an .onnx file. ({type(error).__name__})"
        raise WeightsNotFoundError(
            f"the weights of `{model}`", looked="rembg's model folder and its download", cure=cure
        ) from None
