"""An accelerator that is not here: its tensors compute on the CPU and say that they are elsewhere.

What a real one would refuse raises: tensors of two devices in one operation, ``numpy()``, float64
on MPS. What it would wait for is counted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
}
"""Operations whose result the host needs, as a number or as a shape."""


class Elsewhere(Tensor):
    """A tensor on an accelerator."""

    on_cpu: Tensor
    machine: "Accelerator"

    @staticmethod
    def __new__(cls, inner: Tensor, machine: "Accelerator") -> "Elsewhere":
        if machine.device.type == "mps" and inner.dtype == torch.float64:
            raise TypeError("MPS has no float64")
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
        )
        made.on_cpu, made.machine = inner, machine
        return made

    device = property(lambda self: self.machine.device)
    is_cpu = property(lambda self: False)

    def __repr__(self, **_: Any) -> str:
        return f"{self.on_cpu} on {self.device}"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
        machine = next(x.machine for x in tensors if isinstance(x, Elsewhere))
        if any(x.ndim and not isinstance(x, Elsewhere) for x in tensors):
            raise RuntimeError(f"{func} has tensors on the CPU and on {machine.device}")
        by_mask = func is aten.index.Tensor and any(
            x.dtype == torch.bool for x in tree_iter(args[1]) if isinstance(x, Tensor)
        )
        if func in WAITS or by_mask:
            machine.waits.append(str(func))
        out = func(*machine.inside(args), **machine.inside(kwargs or {}))
        out = tree_map(lambda x: Elsewhere(x, machine) if isinstance(x, Tensor) else x, out)
        if str(func).startswith("aten._foreach"):
            return out
        return return_and_correct_aliasing(func, args, kwargs or {}, out)


class Accelerator(TorchFunctionMode):
    """A device by name, in the calls of a ``with`` block.

    Attributes:
        device: What its tensors say.
        waits: What the host has waited for.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.device = torch.device(name)
        self.waits: list[str] = []

    def inside(self, values: Any) -> Any:
        """The tensors on the CPU that compute in place of those of the accelerator."""
        return tree_map(lambda x: x.on_cpu if isinstance(x, Elsewhere) else x, values)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        here = isinstance(args[0], Elsewhere) if args else False
        if here and name == "numpy":
            raise TypeError(f"numpy() of a tensor on {self.device}")
        if here and name == "tolist":
            self.waits.append(name)
            return args[0].on_cpu.tolist()
        devices = [self._device(x) for x in (*args, *kwargs.values())]
        asked = next((device for device in devices if device is not None), None)
        if func is Tensor.cpu:
            asked = torch.device("cpu")
        if func is Tensor.to and len(args) > 1 and isinstance(args[1], Tensor):
            asked, args = args[1].device, (args[0], args[1].dtype, *args[2:])
        if asked is None or func in (torch.device, torch._C._nn._parse_to):
            return func(*args, **kwargs)
        there = asked == self.device
        if func in (Tensor.to, Tensor.cpu, torch.as_tensor) and isinstance(args[0], Tensor):
            return self._move(there, args, kwargs)
        if there and func in (torch.tensor, torch.as_tensor):
            self.waits.append(name)
        args, kwargs = tree_map(lambda x: "cpu" if self._device(x) else x, (args, kwargs))
        out = func(*args, **kwargs)
        return Elsewhere(out, self) if there and not isinstance(out, Elsewhere) else out

    def _move(self, there: bool, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """Convert on the device where the tensor is, then take it to the other one."""
        x, *rest = args
        waits = not (kwargs.pop("non_blocking", False) and there)
        kwargs.pop("device", None)
        dtypes = [value for value in (*rest, *kwargs.values()) if isinstance(value, torch.dtype)]
        if there is isinstance(x, Elsewhere):
            return x.to(dtypes[0]) if dtypes else x
        if waits:
            self.waits.append(f"copy to {self.device if there else 'cpu'}")
        if there:
            x = x.detach().clone()
            return Elsewhere(x.to(dtypes[0]) if dtypes else x, self)
        x = x.on_cpu.detach().clone()
        return x.to(dtypes[0]) if dtypes else x

    def _device(self, value: Any) -> torch.device | None:
        """The device that an argument names."""
        if isinstance(value, torch.device):
            return value
        is_name = isinstance(value, str) and value in ("cpu", str(self.device))
        return torch.device(value) if is_name else None


class Generator(torch.Generator):
    """One of the CPU, whatever the device."""

    def __new__(cls, device: object = "cpu") -> torch.Generator:
        return cls.__base__()


@contextmanager
def accelerator(name: str) -> Iterator[Accelerator]:
    """Have a device by name; its generators are those of the CPU."""
    with pytest.MonkeyPatch.context() as patch, Accelerator(name) as machine:
        patch.setattr(torch, "Generator", Generator)
        # The parameters of a module that moves are new ones, of the class of the device.
        overwrite = "get_overwrite_module_params_on_conversion"
        patch.setattr(torch.__future__, overwrite, lambda: True)
        yield machine
