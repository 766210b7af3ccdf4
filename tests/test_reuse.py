"""Features reused between neighbouring calls: what runs, when, and how far it is from the truth."""

import pytest
import torch

from uvit_lit.denoiser import Denoiser, Guided
from uvit_lit.sampler import SOLVERS, count_calls, sample
from uvit_lit.uvit import UViT

SHAPE = (3, 8, 8)


def make(depth=4, **options):
    """A network whose blocks all matter: at its initial weights they change little."""
    torch.manual_seed(0)
    sizes = {"img_size": 8, "embed_dim": 16, "depth": depth, "num_heads": 2, "num_classes": 3}
    backbone = UViT(**sizes, **options)
    with torch.no_grad():
        for block in [*backbone.in_blocks, backbone.mid_block, *backbone.out_blocks]:
            for parameter in block.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(5)
        backbone.decoder_pred.weight.mul_(5)
    return Denoiser(backbone).eval()


@pytest.fixture(scope="module")
def network():
    return make()


def chain(backbone):
    """All blocks in the order in which they run."""
    return [*backbone.in_blocks, backbone.mid_block, *backbone.out_blocks]


@pytest.fixture
def counted(network):
    """A function: how often each block ran since the last time it was asked."""
    counts, handles = [], []
    for i, block in enumerate(chain(network.backbone)):
        counts.append(0)

        def count(*_, i=i):
            counts[i] += 1

        handles.append(block.register_forward_hook(count))

    def read():
        seen = list(counts)
        counts[:] = [0] * len(counts)
        return seen

    yield read
    for handle in handles:
        handle.remove()


def test_1_is_no_reuse(network):
    assert network.reusing(1) is network
    options = {"steps": 3}
    plain = sample(network, SHAPE, [0, 1], [0, 1], **options)
    assert torch.equal(plain, sample(network, SHAPE, [0, 1], [0, 1], reuse=1, **options))
    longer = sample(network, SHAPE, [0, 1], [0, 1], reuse=2, **options)
    assert not torch.equal(plain, longer)


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_inner_blocks_run_in_every_second_call(network, counted, solver, cfg):
    model = network if cfg == 1 else Guided(network, cfg)
    calls = count_calls(model, solver, 5)
    sample(model, SHAPE, [0], [1], solver=solver, steps=5, reuse=2)
    whole = -(-calls // 2)
    assert counted() == [calls, whole, whole, whole, calls]


def test_every_batch_begins_with_a_call_of_the_whole_network(network, counted):
    """Of a single step too, at whose time the batch before it stood."""
    for steps in (1, 3):
        options = {"steps": steps, "reuse": 5, "batch_size": 2}
        sample(network, SHAPE, list(range(5)), [0] * 5, **options)
        assert counted() == [3 * steps, 3, 3, 3, 3 * steps]


@pytest.mark.parametrize(
    ("options", "override"),
    [
        ({}, {}),
        ({"depth": 2}, {"s": 0.3, "b": 1.4}),
        ({"depth": 6}, {"s": [0.2, 0.5, 1.0], "b": 1.3, "t_range": (0.3, 0.8), "t_fade": 0.2}),
        ({"filter": "butterworth", "t_coefficients": 2, "learn_b": True}, {}),
    ],
)
@pytest.mark.parametrize("guide", [False, True])
def test_a_call_between_is_the_whole_network_with_inner_features_put_in(options, override, guide):
    """The slow path: run every block, then replace what the last inner one returned."""
    network = make(**options)
    network.set_skips(**override)
    model = Guided(network, 2.0) if guide else network
    last = chain(network.backbone)[-2]
    y = torch.tensor([0, 2])
    torch.manual_seed(1)
    calls = [(torch.randn(2, *SHAPE), torch.full((2,), t)) for t in (0.9, 0.7, 0.5, 0.2, 0.1)]
    trajectory = model.reusing(3)
    with torch.inference_mode():
        for i, (x, t) in enumerate(calls):
            if i % 3 == 0:
                kept = []
                handle = last.register_forward_hook(lambda *args, kept=kept: kept.append(args[2]))
                expected = model(x, t, y)
                handle.remove()
            else:
                handle = last.register_forward_hook(lambda *_, kept=kept: kept[0])
                expected = model(x, t, y)
                handle.remove()
                assert not torch.equal(expected, model(x, t, y))
            assert torch.equal(trajectory(x, t, y), expected)


def test_the_images_stay_close_the_closer_the_steps(network):
    def error(steps, reuse):
        options = {"solver": "ddim", "steps": steps}
        plain, reused = (
            sample(network, SHAPE, [0, 1, 2], [0, 1, 2], reuse=k, **options) for k in (1, reuse)
        )
        return float((plain - reused).norm() / plain.norm())

    assert error(50, 2) < 0.05
    assert error(200, 2) < error(50, 2) / 2
    assert error(50, 2) < error(50, 5)


def test_the_model_is_as_it_was(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    parts = chain(network.backbone)
    sample(network, SHAPE, [0], [0], steps=4, reuse=2)
    assert all(a is b for a, b in zip(parts, chain(network.backbone), strict=True))
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("reuse", [0, -2])
def test_less_than_1_has_no_meaning(network, reuse):
    with pytest.raises(ValueError, match=f"reuse is {reuse}; accepted: at least 1"):
        sample(network, SHAPE, [0], [0], reuse=reuse)
