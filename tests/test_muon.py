"""Muon against torch's own and against its definition."""

import copy

import pytest
import torch
from torch import nn

from uvit_lit.settings import SkipSettings
from uvit_lit.training.module import DiffusionModule, parameter_groups
from uvit_lit.training.optim import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 64, 16), (2, 16, 64)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before, after = (torch.linalg.svdvals(m) for m in (matrices, orthogonalise(matrices)))
    assert before.max() / before.min() > 2
    assert after.min() > 0.6
    assert after.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    nearest = left @ right
    assert ((orthogonalise(matrices) - nearest).norm() / nearest.norm()) < 0.3


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 0.03), (torch.bfloat16, 1e-3)])
def test_a_step_is_that_of_torch(dtype, error):
    """Three steps; torch iterates in bfloat16."""
    start = torch.randn(24, 16, generator=torch.Generator().manual_seed(1))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    group = {"params": [ours], "matrices": 1, "weight_decay": 0.1}
    mine = Muon([group], lr=0.02, betas=(0.95, 0.99), dtype=dtype)
    reference = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for k in range(3):
        gradient = torch.randn(24, 16, generator=torch.Generator().manual_seed(2 + k))
        for parameter, optimizer in ((ours, mine), (theirs, reference)):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved, difference = (ours - start).norm(), (ours - theirs).norm()
    assert difference / moved < error


def test_fused_matrices_are_orthogonalised_apart():
    fused = nn.Parameter(torch.zeros(48, 16))
    fused.grad = torch.randn(48, 16, generator=torch.Generator().manual_seed(0))
    Muon([{"params": [fused], "matrices": 3, "weight_decay": 0.0}], lr=1.0).step()
    for part, gradient in zip(fused.detach().chunk(3), fused.grad.chunk(3), strict=True):
        torch.testing.assert_close(-part / (0.2 * 4), orthogonalise(gradient[None])[0])


def test_the_other_groups_take_the_step_of_adamw():
    weights, theirs = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    matrix = nn.Parameter(torch.eye(4))
    groups = [{"params": [weights]}, {"params": [matrix], "matrices": 1}]
    optimizers = Muon(groups, lr=0.1), torch.optim.AdamW([theirs], lr=0.1)
    for parameter, optimizer in zip((weights, theirs), optimizers, strict=True):
        parameter.grad = torch.arange(4.0)
        optimizer.step()
    assert torch.equal(weights, theirs)
    assert torch.equal(matrix, torch.eye(4))  # no gradient, no step


def test_a_closure_sees_all_groups():
    """Lightning clears and clips the gradients of every group inside it."""
    matrix, weights = nn.Parameter(torch.eye(4)), nn.Parameter(torch.ones(4))
    optimizer = Muon([{"params": [matrix], "matrices": 1}, {"params": [weights]}], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (matrix * torch.arange(4.0)).sum() + weights.sum()
        loss.backward()
        return loss

    for _ in range(3):
        assert optimizer.step(closure) is not None
    torch.testing.assert_close(matrix.grad, torch.arange(4.0).expand(4, 4))
    assert not torch.equal(matrix, torch.eye(4))


def test_a_saved_state_goes_on():
    def step(parameters, optimizer, seed):
        for parameter in parameters:
            generator = torch.Generator().manual_seed(seed)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    def make(values):
        parameters = [nn.Parameter(v.detach().clone()) for v in values]
        groups = [{"params": parameters[:1], "matrices": 1}, {"params": parameters[1:]}]
        return parameters, Muon(groups, lr=0.1)

    ours, optimizer = make([torch.eye(4), torch.ones(4)])
    step(ours, optimizer, 0)
    again, resumed = make(ours)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parameters, one in ((ours, optimizer), (again, resumed)):
        step(parameters, one, 1)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


def test_muon_takes_the_matrices_of_the_blocks_and_no_others():
    model = DiffusionModule(
        img_size=8,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=3,
        skip=SkipSettings("butterworth", s=0.9),
        optimizer="muon",
    )
    names = {id(p): n.removeprefix("denoiser.backbone.") for n, p in model.named_parameters()}
    groups = parameter_groups(model.denoiser, 1e-3, 0.03, 5.0, muon=True)
    named = {g["name"]: {names[id(p)] for p in g["params"]} for g in groups}
    assert sum(len(g["params"]) for g in groups) == len(names)
    assert {g["name"]: g.get("matrices") for g in groups} == {
        "qkv": 3,
        "matrices": 1,
        "decay": None,
        "no_decay": None,
        "filters": None,
    }
    assert all(n.endswith("attn.qkv.weight") for n in named["qkv"])
    assert len(named["qkv"]) == 3
    assert all("block" in n and n.endswith("weight") for n in named["matrices"])
    assert len(named["matrices"]) == 3 * 3 + 1
    assert named["decay"] == {
        "decoder_pred.weight",
        "patch_embed.proj.weight",
        "final_layer.weight",
    }
