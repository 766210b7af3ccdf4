"""Skip modulations on networks of others: the same numbers, nothing left behind."""

import copy
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import ROOT
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import nn

from uvit_lit import modulate
from uvit_lit.diffusion import Denoiser
from uvit_lit.settings import Window
from uvit_lit.skips import SkipModulation, override_skips
from uvit_lit.uvit import UViT

SMALL = {"img_size": 16, "patch_size": 2, "embed_dim": 16, "depth": 4, "num_heads": 2}
OVERRIDES = [
    {"s": 0.5, "b": 1.3},
    {"s": [0.2, 0.6], "b": 1.2, "filter": "butterworth", "cutoff": 0.5},
    {"s": 0.0, "b": 1.4, "filter": "freeu_box", "skips": "inner", "b_channels": 0.5},
    {"s": [0.3, 0.8], "skips": "1,0"},
]


def make_uvit(**options):
    torch.manual_seed(0)
    return UViT(**SMALL, **options).eval()


def make_unet(kind, **options):
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 16, 24), "norm_num_groups": 4, "layers_per_block": 1}
    if kind is UNet2DConditionModel:
        blocks |= {"cross_attention_dim": 8, "attention_head_dim": 2}
        blocks["down_block_types"] = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
        blocks["up_block_types"] = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    else:
        blocks["down_block_types"] = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D")
        blocks["up_block_types"] = ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D")
        blocks["attention_head_dim"] = 4
    return kind(16, **{"in_channels": 3, "out_channels": 3, **blocks, **options}).eval()


def call(network, t=500):
    """What it makes of two fixed images."""
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    if isinstance(network, UViT):
        return network(x, torch.as_tensor(t).expand(2))
    condition = () if isinstance(network, UNet2DModel) else (torch.ones(2, 4, 8),)
    return network(x, torch.as_tensor(t), *condition).sample


NETWORKS = {
    "UViT": make_uvit,
    "UNet2DModel": lambda: make_unet(UNet2DModel),
    "UNet2DConditionModel": lambda: make_unet(UNet2DConditionModel),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


@pytest.mark.parametrize("override", OVERRIDES)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_it_is_on_a_uvit_what_the_skips_of_the_uvit_are(override, num_classes):
    network = make_uvit(num_classes=num_classes)
    plain = call(network)
    with modulate(network, **override):
        attached = call(network)
    assert torch.equal(call(network), plain)
    with Denoiser(network).skips(**override):
        torch.testing.assert_close(attached, call(network), atol=1e-6, rtol=1e-5)
    assert (attached - plain).abs().max() > 1e-3


def test_s_1_and_b_1_are_exactly_the_network(network):
    plain = call(network)
    for neutral in (
        {},
        {"s": 1.0, "b": 1.0, "filter": "step"},
        {"learn": ("s", "cutoff", "b"), "filter": "butterworth"},
    ):
        with modulate(network, **neutral):
            assert torch.equal(call(network), plain)


def test_the_network_is_as_it_was(network):
    plain, before = call(network), copy.deepcopy(network.state_dict())
    names = [name for name, _ in network.named_modules()]
    attached = modulate(network, s=0.3, b=1.4)
    assert (call(network) - plain).abs().max() > 1e-3
    assert network.state_dict().keys() == before.keys()
    assert [name for name, _ in network.named_modules()] == names
    attached.remove()
    attached.remove()
    assert torch.equal(call(network), plain)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("stage", [0, 1])
def test_it_is_freeu_where_freeu_scales_the_skips_alone(stage):
    network = make_unet(UNet2DConditionModel)
    plain = call(network)
    scales = {"s1": 1.0, "s2": 1.0, f"s{stage + 1}": 0.3}
    network.enable_freeu(**scales, b1=1.0, b2=1.0)
    expected = call(network)
    network.disable_freeu()
    side = 4 * 2**stage  # a threshold of 1 on its maps
    with modulate(
        network, skips=(f"up_blocks.{stage}",), filter="freeu_box", s=0.3, cutoff=2 / side
    ):
        torch.testing.assert_close(call(network), expected, atol=1e-5, rtol=1e-5)
    assert (expected - plain).abs().max() > 1e-3


@pytest.mark.parametrize("stage", [0, 1])
def test_it_is_freeu_1_with_a_constant_b_on_half_of_the_channels(stage):
    network = make_unet(UNet2DConditionModel)
    plain = call(network)
    scales = {f"{knob}{stage + 1}": value for knob, value in (("s", 0.3), ("b", 1.4))}
    network.enable_freeu(**{"s1": 1.0, "s2": 1.0, "b1": 1.0, "b2": 1.0, **scales})
    expected = call(network)
    network.disable_freeu()
    side = 4 * 2**stage
    with modulate(
        network,
        skips=(f"up_blocks.{stage}",),
        filter="freeu_box",
        s=0.3,
        b=1.4,
        b_channels=0.5,
        b_map="constant",
        cutoff=2 / side,
    ):
        torch.testing.assert_close(call(network), expected, atol=1e-5, rtol=1e-5)
    assert (expected - plain).abs().max() > 1e-3


def test_it_is_scalelong_with_powers_of_kappa_on_every_token():
    """Constant scaling, 2310.13545: kappa^i on skip i; its U-ViT scales the prefix tokens too."""
    network, kappa = make_uvit(), 0.7
    plain = call(network)
    hooks = [
        network.out_blocks[-1 - i].register_forward_pre_hook(
            lambda _, args, i=i: (args[0], kappa**i * args[1])
        )
        for i in range(2)
    ]
    expected = call(network)
    for hook in hooks:
        hook.remove()
    joins = {"out_blocks.1": None, "out_blocks.0": None}
    settings = {"filter": "flat", "s": [kappa**i for i in range(2)]}
    with modulate(network, at=joins, grid=(1, 65), prefix=0, **settings):
        torch.testing.assert_close(call(network), expected, atol=1e-5, rtol=1e-5)
    assert (expected - plain).abs().max() > 1e-3
    learned = modulate(network, learn=("s",), **{**settings, "s": [0.9, 0.6]})
    (call(network) - expected).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in learned.parameters())
    assert len(list(learned.parameters())) == 2


def test_b_alone_may_be_constant():
    """Without a filter, too."""
    network = make_uvit()
    with modulate(network, b=1.4) as attached:
        structured = call(network)
        attached.set(b=1.4, b_map="constant")
        assert (call(network) - structured).abs().max() > 1e-4


def test_the_skips_of_a_unet_are_where_its_blocks_join():
    network = make_unet(UNet2DModel)
    attached = modulate(network, learn=("cutoff",), filter="butterworth", s=0.9)
    seen = {}
    for name, modulation in zip(attached.layers, attached.modulations, strict=True):
        modulation.register_forward_hook(
            lambda module, args, _, name=name: seen.__setitem__(
                name, (args[0].shape[1], args[1].shape[1], module.grid, args[1].shape[2:])
            )
        )
    call(network)
    outermost = {
        f"up_blocks.{k}.resnets.{j}": seen[f"up_blocks.{k}.resnets.{j}"][:2]
        for k in (2, 1, 0)
        for j in (1, 0)
    }
    assert list(outermost) == attached.layers
    assert list(outermost.values()) == [(8, 8), (16, 8), (16, 8), (24, 16), (24, 16), (24, 24)]
    assert all(grid == shape for _, _, grid, shape in seen.values())
    shared = UNet2DModel(
        16,
        block_out_channels=(32, 64),
        layers_per_block=2,
        norm_num_groups=8,
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    ).eval()
    with modulate(shared, b=1.0, s=0.5) as attached:
        assert len(attached.layers) == 6
        call(shared)


@pytest.mark.parametrize("skips", ["up_blocks.0", ["up_blocks.0.resnets.1", 5], (4, 5), "4,5"])
def test_skips_are_chosen_by_name_or_number(skips):
    attached = modulate(make_unet(UNet2DModel), skips=skips, s=[0.5, 0.6])
    assert attached.layers == ["up_blocks.0.resnets.1", "up_blocks.0.resnets.0"]
    assert [modulation.settings.s for modulation in attached.modulations] == [0.5, 0.6]


@pytest.mark.parametrize("t", [300, 700.0])
def test_a_window_follows_the_timestep_of_the_call(network, t):
    plain = call(network, t)
    with modulate(network, s=0.3, b=1.4):
        always = call(network, t)
    with modulate(network, s=0.3, b=1.4, t_range=(0.5, 1.0)) as attached:
        torch.testing.assert_close(call(network, t), always if t > 500 else plain)
        attached.set(s=0.3, b=1.4, t_range=(0.0, 0.5))
        torch.testing.assert_close(call(network, t), plain if t > 500 else always)


def test_a_window_takes_the_timesteps_of_each_image_and_by_keyword():
    network, x = make_uvit(), torch.randn(2, 3, 16, 16)
    t = torch.tensor([100.0, 900.0])
    plain = network(x, t)
    with modulate(network, s=0.3, b=1.4, t_range=(0.5, 1.0)):
        windowed = network(x, timesteps=t)
        torch.testing.assert_close(windowed[0], plain[0])
        assert (windowed[1] - plain[1]).abs().max() > 1e-3
        with pytest.raises(ValueError, match="needs the timestep"):
            network.out_blocks[0](*torch.randn(2, 1, 65, 16))


def test_a_later_setting_replaces_the_one_before(network):
    plain = call(network)
    with modulate(network, b=1.4) as attached:
        attached.set(s=0.3)
        changed = call(network)
        attached.set()
        assert torch.equal(call(network), plain)
    with modulate(network, s=0.3):
        assert torch.equal(call(network), changed)


def test_a_learned_filter_trains_and_its_state_loads(network):
    """It finds s and the cutoff of another, with the network held still."""
    with modulate(network, skips="inner", filter="butterworth", s=0.3, cutoff=0.8), torch.no_grad():
        target = call(network)
    network.requires_grad_(False)
    learn = {"skips": "inner", "filter": "butterworth", "learn": ("s", "cutoff")}
    attached = modulate(network, s=0.9, **learn)
    assert [name for name, _ in attached.named_parameters()] == [
        f"modulations.0.learned.{name}.raw" for name in ("s", "cutoff")
    ]
    optimizer = torch.optim.Adam(attached.parameters(), lr=0.1)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append((call(network) - target).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.05 * losses[0]
    learned, output = attached.state_dict(), call(network)
    attached.remove()
    with modulate(network, s=0.9, **learn) as again:
        again.load_state_dict(learned)
        assert torch.equal(call(network), output)


def test_a_copy_of_the_network_has_modulations_of_its_own(network):
    attached = modulate(network, s=0.3, b=1.4, t_range=(0.2, 0.8))
    expected = call(network)
    twin = copy.deepcopy(network)
    attached.set()
    assert torch.equal(call(twin), expected)
    attached.remove()
    assert torch.equal(call(twin), expected)


def test_two_sets_of_modulations_act_side_by_side(network):
    settings = {"skips": (0, 1), "s": [0.3, 0.6]}
    with modulate(network, **settings):
        together = call(network)
    with modulate(network, skips="0", s=0.3), modulate(network, skips="1", s=0.6):
        assert torch.equal(call(network), together)


class Decoder(nn.Module):
    """A network of one's own: maps, concatenated before one layer, apart at another."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.Bilinear(4, 4, 6)
        self.fuse = nn.ModuleList([nn.Conv2d(10, 3, 3, padding=1)])

    def forward(self, x, timestep):
        skip = self.encode(x)
        apart = [features.permute(0, 2, 3, 1).contiguous() for features in (skip.tanh(), skip)]
        backbone = self.inner(*apart).permute(0, 3, 1, 2)
        return self.fuse[0](torch.cat([backbone, skip], dim=1))


def test_a_layer_that_the_caller_names():
    network, x = Decoder(), torch.randn(2, 3, 8, 8)
    plain = network(x, 500)
    inputs = []
    hook = network.fuse[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    network(x, 500)
    hook.remove()
    modulation = SkipModulation(s=0.4, b=1.5)
    expected = network.fuse[0](torch.cat(modulation(*inputs[0].split([6, 4], dim=1)), dim=1))
    with modulate(network, at={"fuse.0": 6}, s=0.4, b=1.5) as attached:
        assert torch.equal(network(x, 500), expected)
        attached.set(s=0.4, b=1.5, t_range=(0, 0.4))
        torch.testing.assert_close(network(x, 500), plain)
    with modulate(network, at={"fuse.0": 6}, grid=(8, 8), learn=("b",)) as attached:
        network(x, 500).sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in attached.parameters())


def test_layers_that_take_tokens():
    """Two arguments, or one concatenation along the last dimension."""
    apart, features = nn.Bilinear(4, 4, 2), torch.randn(2, 3, 17, 4)
    joined = nn.Sequential(nn.Linear(8, 2))
    expected = SkipModulation((4, 4), 1, s=0.4, b=1.5)(*features)
    network = nn.ModuleDict({"apart": apart, "joined": joined})
    with modulate(network, at={"apart": None, "joined.0": 4}, prefix=1, s=0.4, b=1.5):
        outputs = network["apart"](*features), network["joined"](torch.cat([*features], dim=-1))
    torch.testing.assert_close(outputs[0], apart(*expected))
    torch.testing.assert_close(outputs[1], joined(torch.cat(expected, dim=-1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skips": "6"}, "skips is '6'; accepted: all, inner, outer, numbers from 0 .* to 5, or"),
        ({"skips": ("up_blocks.3",)}, "accepted: all, inner, outer, numbers"),
        ({"skips": "up_blocks.0,4"}, "skips is"),
        ({"s": [0.1, 0.2]}, "s has 2 values; accepted: 1 or 6"),
        ({"s": [0.9, 0.2], "filter": "butterworth", "learn": ("s",)}, "s has 2 values; accepted"),
        ({"s": -1.0}, "s is -1.0"),
        ({"s": 0.5, "t_range": (0.5, 0.2)}, "range of t is 0.5,0.2"),
        ({"s": 0.5, "t_fade": 0.2}, "accepted: only with t_range"),
        ({"learn": ("b",), "t_range": (0, 1)}, "accepted where nothing is learned"),
        ({"learn": ("order",)}, "learn is order"),
        ({"at": {"up_blocks.9": 3}}, "at is 'up_blocks.9'; accepted: names of layers"),
        ({"at": {}}, "no long skips that are known"),
        ({"at": {"conv_in": 3}, "learn": ("b",)}, "grid is not known"),
    ],
)
def test_mistakes_are_named_and_change_nothing(options, message):
    network = make_unet(UNet2DModel)
    with pytest.raises(ValueError, match=message):
        modulate(network, **options)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_network_without_long_skips_is_named():
    for network in (nn.Linear(3, 3), Denoiser(make_uvit()), AutoencoderKL(norm_num_groups=32)):
        with pytest.raises(ValueError, match=f"{type(network).__name__} has no long skips that"):
            modulate(network)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ({"fuse.0": 10}, "fuse.0 has 10 channels, of which 10 would be the backbone's"),
        ({"fuse.0": None}, "fuse.0 is not called with backbone and skip"),
    ],
)
def test_a_layer_that_is_called_with_something_else_is_named(at, message):
    network = Decoder()
    with modulate(network, at=at, s=0.5), pytest.raises(ValueError, match=message):
        network(torch.randn(1, 3, 8, 8), 0)


@pytest.mark.slow
def test_a_network_that_is_compiled_with_modulations():
    network = make_uvit()
    torch.compiler.reset()
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([100.0, 900.0])
    with modulate(network, s=0.3, b=1.4, t_range=(0.5, 1.0)):
        expected = network(x, t)
        compiled = torch.compile(network, backend="eager")
        torch.testing.assert_close(compiled(x, t), expected, atol=1e-5, rtol=1e-5)


def test_skips_of_ones_own_settings_come_first():
    """On our U-ViT they act on what its own long skips give."""
    network = make_uvit()
    override_skips(network.long_skips, s=0.5, window=Window(0.0, 1.0))
    once = call(network)
    with modulate(network, s=0.5, cutoff=0.3):
        twice = call(network)
    override_skips(network.long_skips, s=0.25)
    torch.testing.assert_close(twice, call(network), atol=1e-6, rtol=1e-5)
    assert (once - twice).abs().max() > 1e-4


class Official(UViT):
    """In the place of the official class: as many long skips, and its name for the prefix."""

    def __init__(self, depth, num_classes, **sizes):
        super().__init__(**{**SMALL, "img_size": 32, "patch_size": 4, "depth": depth})
        self.extras = self.num_prefix
        assert (num_classes, sizes["num_heads"]) == (-1, 8)


PAGE = (ROOT / "docs" / "how-to" / "modulate.md").read_text()
EXAMPLES = {
    section.partition("\n")[0]: code
    for section in PAGE.split("\n## ")[1:]
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
}


def test_the_page_has_three_examples():
    assert len(EXAMPLES) == PAGE.count("```python") == 3


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_of_the_page_runs(title, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "libs", ModuleType("libs"))
    monkeypatch.setitem(sys.modules, "libs.uvit", SimpleNamespace(UViT=Official))
    weights = {k: 5 * v for k, v in Official(12, -1, num_heads=8).state_dict().items()}
    torch.save(weights, "cifar10_uvit_small.pth")

    def from_pretrained(name):
        assert name == "google/ddpm-cifar10-32"
        return DDIMPipeline(make_unet(UNet2DModel), DDIMScheduler())

    monkeypatch.setattr(DDIMPipeline, "from_pretrained", from_pretrained)
    names = {}
    exec(EXAMPLES[title], names)
    if "image" in names:
        assert names["image"].size == (16, 16)
        assert not names["attached"]._hooks
    else:
        with torch.no_grad():
            plain = names["network"](*[names[n] for n in ("x", "timesteps") if n in names])
        assert (names["changed"] - plain).abs().max() > 1e-5
