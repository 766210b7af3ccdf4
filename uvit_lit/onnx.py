"""The denoiser as an ONNX file with s, b and the cutoff of every long skip as inputs.

One file serves every setting of the model's filters, in onnxruntime, in a browser, in any language.
The weights may be stored as float16 or int8; everything is computed in float32.
"""

import copy
import dataclasses
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uvit_lit.diffusion import STEPS
from uvit_lit.errors import install, require
from uvit_lit.files import write
from uvit_lit.model import Model
from uvit_lit.sampling import make_scheduler
from uvit_lit.settings import SkipSettings
from uvit_lit.skips import Acting, SkipModulation

DTYPES = ("float32", "float16", "int8")
"""How the matrices of the network may be stored."""

NUMBERS = ("s", "b", "cutoff")
"""What is an input for every long skip, in the order of the inputs."""

OPSET = 20
"""Version of the ONNX operators: the first with GELU."""


class _Input:
    """A number of a long skip that is an input of the graph; a call gives that of this run."""

    value: Tensor

    def __call__(self) -> Tensor:
        """The number, a tensor of no dimension."""
        return self.value


class _Adjusted(nn.Module):
    """In the place of a ``SkipModulation``: the same, with ``NUMBERS`` given at every run."""

    window = None  # it acts at every t

    def __init__(self, long_skip: SkipModulation, settings: SkipSettings) -> None:
        super().__init__()
        assert long_skip.grid is not None
        self.inputs = {name: _Input() for name in NUMBERS}
        self.acting = Acting(settings, dict(self.inputs), long_skip.grid)
        self.prefix = long_skip.prefix

    def forward(self, backbone: Tensor, skip: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Modulate, as ``SkipModulation`` does; the time is not used."""
        return self.acting(backbone, skip, self.prefix)


class AdjustableDenoiser(nn.Module):
    """A denoiser whose s, b and cutoff of every long skip are arguments of the call.

    Args:
        model: Its denoiser is copied, in float32 on the CPU.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.denoiser = copy.deepcopy(model.denoiser).float().cpu()
        in_place = self.denoiser.backbone.long_skips
        self.long_skips = [
            _Adjusted(*pair) for pair in zip(in_place, adjustable(model), strict=True)
        ]
        for number, long_skip in enumerate(self.long_skips):
            in_place[number] = long_skip  # in the same list, which hooks of the backbone may hold
        self.eval()

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        label: Tensor | None,
        s: Tensor,
        b: Tensor,
        cutoff: Tensor,
    ) -> Tensor:
        """Estimate the clean image.

        Args:
            x_t: (batch, channels, height, width) noisy images.
            t: (batch,) times in [0, 1].
            label: (batch,) labels, the last row of the embedding for no class; None for a model
                without classes.
            s: (long skips,) skip scales, outermost first.
            b: (long skips,) backbone scales.
            cutoff: (long skips,) cutoffs, fraction of Nyquist, above 0.

        Returns:
            The clean image, of the shape of ``x_t``, float32.
        """
        for name, values in zip(NUMBERS, (s, b, cutoff), strict=True):
            for long_skip, value in zip(self.long_skips, values.unbind(), strict=True):
                long_skip.inputs[name].value = value
        return self.denoiser(x_t, t, label)


def adjustable(model: Model) -> list[SkipSettings]:
    """Settings in force of each long skip, outermost first, with a step where there is no filter.

    At its s of 1 the step changes nothing, and another s is as in ``Model.skips``.
    """
    settings = [long_skip.settings for long_skip in model.denoiser.backbone.long_skips]
    return [
        dataclasses.replace(one, filter="step") if one.filter == "none" else one for one in settings
    ]


def describe_model(model: Model) -> dict[str, Any]:
    """What a program needs to draw with the file, as plain data.

    Returns:
        name: Of the model.
        image_shape: Channels, height, width.
        class_names: By label; the label after the last is no class. Empty without classes.
        can_guide: Whether no class was trained, as guidance needs.
        long_skips: Settings in force of each, outermost first: the values of the inputs that give
            the model as trained, and the filter, which is fixed.
        skips: Numbers of the long skips that a single s, cutoff and b each act on when nobody says
            which, by these names.
        schedule, prediction: By name.
        log_alpha: Log of alpha at the times n / 1000, n = 0 to 1000.
        sigmas: Sigma / alpha of the first and of the last call of the dpmpp solver.
        training_steps, data, licence: Of the training; None where unknown.
    """
    schedule = model.denoiser.schedule
    times = torch.arange(STEPS + 1, dtype=torch.float64) / STEPS
    return {
        "name": model.name,
        "image_shape": model.image_shape,
        "class_names": model.class_names,
        "can_guide": model.can_guide,
        "long_skips": [vars(settings) for settings in adjustable(model)],
        "skips": model.choose_skips(),
        "schedule": model.schedule,
        "prediction": model.prediction,
        "log_alpha": schedule.log_alpha(times).tolist(),
        "sigmas": make_scheduler("dpmpp", schedule, 2).sigmas[:2].tolist(),
        "training_steps": model.step,
        "data": model.data.get("name"),
        "licence": model.licence,
    }


def export_onnx(model: Model, path: Path, dtype: str = "float32") -> dict[str, Any]:
    """Write the denoiser of a model as an ONNX file.

    Its inputs are the arguments of ``AdjustableDenoiser.forward`` (no ``label`` without classes),
    its output is ``x0``; the batch may have any size. Guidance is two runs, or one of twice the
    batch: with the labels and with no class. The metadata has ``describe_model`` as JSON under
    ``uvit_lit``.

    Args:
        model: From ``load_model``. The settings of its skips in force become the ones described
            as trained; a window in t is not kept.
        path: File to write.
        dtype: How the matrices are stored, one of ``DTYPES``. int8 has a scale for each output.

    Returns:
        The description that it wrote.

    Raises:
        ValueError: If the dtype is unknown.
        OSError: If it cannot be written, or the extra ``export`` is not installed.
    """
    require(dtype in DTYPES, "dtype", dtype, ", ".join(DTYPES))
    proto = _graph(model)
    if dtype != "float32":
        _store(proto.graph, dtype)
    card = describe_model(model)
    entry = proto.metadata_props.add()
    entry.key, entry.value = "uvit_lit", json.dumps(card)
    write(path, proto.SerializeToString())
    return card


@contextmanager
def missing_packages() -> Iterator[None]:
    """Raise an ``OSError`` that names the extra where a package of it cannot be imported."""
    try:
        yield
    except ImportError as error:
        message = f"{error.name} is not installed: {install('export')}"
        raise OSError(message) from None


def _graph(model: Model) -> Any:
    """The model as an ``onnx.ModelProto``."""
    with missing_packages():
        from onnxscript import opset20 as op

    def hypot(x: Any, y: Any) -> Any:  # torch's exporter has no such function
        return op.Sqrt(op.Add(op.Mul(x, x), op.Mul(y, y)))

    network = AdjustableDenoiser(model)
    count = len(network.long_skips)
    inputs: dict[str, Any] = {
        "x_t": torch.zeros(2, *model.image_shape),
        "t": torch.full((2,), 0.5),
        "label": torch.zeros(2, dtype=torch.long) if model.class_names else None,
        **{name: torch.ones(count) for name in NUMBERS},
    }
    batch = torch.export.Dim("batch")
    dynamic = {
        name: None if name in NUMBERS or value is None else {0: batch}
        for name, value in inputs.items()
    }
    network(**inputs)  # what filters.py caches must be real tensors, not those of the tracer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.onnx.export(
            network,
            kwargs=inputs,
            input_names=[name for name, value in inputs.items() if value is not None],
            output_names=["x0"],
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            custom_translation_table={torch.ops.prims.hypot.default: hypot},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _store(graph: Any, dtype: str) -> None:
    """Store the matrices of the linear layers as another type, and compute with them as before.

    The nodes that turn them back have constants alone as inputs, so a runtime runs them once.
    """
    from onnx import helper, numpy_helper

    matrices = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    first = []
    for tensor in [tensor for tensor in graph.initializer if tensor.name in matrices]:
        values = numpy_helper.to_array(tensor)  # inputs by outputs
        name, stored = tensor.name, f"{tensor.name}_{dtype}"
        if dtype == "float16":
            tensor.CopyFrom(numpy_helper.from_array(values.astype("float16"), stored))
            first.append(helper.make_node("Cast", [stored], [name], to=1))
            continue
        scale = (abs(values).max(0, keepdims=True) / 127).clip(min=1e-12).astype("float32")
        tensor.CopyFrom(numpy_helper.from_array((values / scale).round().astype("int8"), stored))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        first.append(helper.make_node("Cast", [stored], [f"{name}_whole"], to=1))
        first.append(helper.make_node("Mul", [f"{name}_whole", f"{name}_scale"], [name]))
    nodes = [*first, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
