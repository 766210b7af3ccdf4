"""Muon for the matrices of the blocks, AdamW for everything else, as one optimiser."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration (Jordan et al. 2024), steepest at 0; those of ``torch.optim.Muon``."""

ITERATIONS = 5
"""Of Newton and Schulz, as published."""


def orthogonalise(matrices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Move all singular values of each matrix close to 1 (into about 0.7 to 1.2).

    Args:
        matrices: (count, rows, columns).
        dtype: Of the Newton-Schulz iterations. None is bfloat16 on accelerators, as published, and
            float32 on a CPU, since many have no bfloat16 products.

    Returns:
        The same shape and dtype.

    References:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
    """
    a, b, c = COEFFICIENTS
    if dtype is None:
        dtype = torch.float32 if matrices.device.type == "cpu" else torch.bfloat16
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.AdamW):
    """AdamW of which some parameter groups are orthogonalised instead.

    A group with a number ``matrices`` takes the Muon step: Nesterov momentum (the first of the
    group's ``betas``), orthogonalised, times 0.2 sqrt(max(rows, columns)), which has the size of
    an AdamW step, so that one learning rate serves both. ``matrices`` says of how many stacked
    matrices each parameter consists: 3 for a fused query, key and value, which are orthogonalised
    apart. The kernels of a convolution are a matrix (channels out, the rest). It needs whole
    matrices, not those that a strategy has cut.

    Args:
        params: Parameter groups.
        dtype: As for ``orthogonalise``.
        **defaults: Those of ``torch.optim.AdamW``.

    References:
        ``torch.optim.Muon`` with ``match_rms_adamw``; Liu et al., "Muon is scalable for LLM
        training", 2025, for the scale; arXiv 2608.02502 for the fused matrices.
    """

    def __init__(self, params: Any, dtype: torch.dtype | None = None, **defaults: Any) -> None:
        super().__init__(params, **defaults)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:  # before the groups are split: it clears and clips all gradients
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group.get("matrices")]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group.get("matrices"):
                self._orthogonal_step(group)
        return loss

    def _orthogonal_step(self, group: dict[str, Any]) -> None:
        """The Muon step of one group, matrices of the same shape together."""
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        momentum = group["betas"][0]
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
                state["step"] = torch.zeros(())  # AdamW looks for it in every state that it loads
            average = state["momentum"].lerp_(parameter.grad, 1 - momentum)
            update = parameter.grad.lerp(average, momentum)
            matrices = update.unflatten(0, (group["matrices"], -1)).flatten(2)
            by_shape[matrices.shape[1:]].append((parameter, matrices))
        for shape, pairs in by_shape.items():
            stacked = torch.cat([matrices for _, matrices in pairs])
            updates = orthogonalise(stacked, self.dtype)
            size = group["lr"] * 0.2 * math.sqrt(max(shape))
            for (parameter, _), update in zip(pairs, updates.split(group["matrices"]), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.reshape(parameter.shape), alpha=-size)
