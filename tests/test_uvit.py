"""The backbone against the official U-ViT code, and the override of the skips."""

import math

import pytest
import torch

from uvit_lit.diffusion import Denoiser
from uvit_lit.families import FILTERS
from uvit_lit.settings import SkipSettings, Window
from uvit_lit.skips import override_skips
from uvit_lit.uvit import UViT

SMALL = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 4, "num_heads": 2}


def formula(shape, phase, scale):
    """Numbers that any implementation can make: scale * sin(0.7 k + phase)."""
    count = math.prod(shape)
    values = scale * torch.sin(torch.arange(count, dtype=torch.float64) * 0.7 + phase)
    return values.float().reshape(shape)


def fill(model):
    with torch.no_grad():
        for i, (_, parameter) in enumerate(sorted(model.named_parameters())):
            parameter.copy_(formula(parameter.shape, i, 0.3))
    return model


# Made by the official code (baofff/U-ViT at ce55170, torch 2.15) from the same formula.
GOLDEN = {
    (0, False): (
        [0.117498, -0.104274, -0.248309, -0.449981, 0.117622, -0.104521, -0.24791, -0.449464],
        [1.037144, 1.056849],
        [1.021023, 1.03622],
    ),
    (3, True): (
        [-0.059665, -0.208094, -0.328595, -0.504973, -0.05968, -0.207272, -0.328129, -0.506003],
        [1.119951, 1.155852],
        [1.065912, 1.097007],
    ),
}


@pytest.mark.parametrize(("num_classes", "mlp_time_embed"), GOLDEN)
def test_agrees_with_the_official_code(num_classes, mlp_time_embed):
    output, loss, trained_loss = GOLDEN[num_classes, mlp_time_embed]
    model = fill(UViT(**SMALL, num_classes=num_classes, mlp_time_embed=mlp_time_embed))
    denoiser = Denoiser(model)
    x0, eps = formula((2, 3, 8, 8), 0.1, 1.0), formula((2, 3, 8, 8), 0.2, 1.4)
    t, y = torch.tensor([0.2, 0.9]), torch.tensor([1, 3])
    close = {"atol": 2e-6, "rtol": 1e-5}
    torch.testing.assert_close(model(x0, t * 999, y).flatten()[::48], torch.tensor(output), **close)
    torch.testing.assert_close(denoiser.loss(x0, eps, t, y), torch.tensor(loss), **close)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=2e-4, weight_decay=0.03, betas=(0.99, 0.999)
    )
    for _ in range(20):
        optimizer.zero_grad()
        denoiser.loss(x0, eps, t, y).mean().backward()
        optimizer.step()
    trained = denoiser.loss(x0, eps, t, y)
    torch.testing.assert_close(trained, torch.tensor(trained_loss), atol=0, rtol=1e-4)


OFFICIAL_LAYOUTS = [  # made in the same way; num_classes without the null class
    (
        {"in_chans": 4, "patch_size": 4, "qkv_bias": True, "num_classes": 3},
        [0.324061, 0.159259, -0.065984, -0.25522, 0.325656, 0.160711, -0.064682, -0.254074],
    ),
    (
        {"in_chans": 4, "conv": False, "num_classes": 3},
        [-0.807434, 0.386407, 1.181487, 0.425486, -0.807665, 0.384291, 1.180858, 0.427346],
    ),
]


@pytest.mark.parametrize(("options", "output"), OFFICIAL_LAYOUTS)
def test_the_latent_layouts_agree_with_the_official_code(options, output):
    model = fill(UViT(**{**SMALL, **options}))
    x, t, y = formula((2, 4, 8, 8), 0.1, 1.0), torch.tensor([0.2, 0.9]), torch.tensor([1, 3])
    with torch.no_grad():
        values = model(x, t * 999, y).flatten()[::64]
    torch.testing.assert_close(values, torch.tensor(output), atol=2e-6, rtol=1e-5)


def test_small_has_the_published_size_and_names():
    with torch.device("meta"):
        model = UViT()
    state = model.state_dict()
    assert sum(p.numel() for p in model.parameters()) == 44_255_328
    assert len(state) == 164
    assert state["pos_embed"].shape == (1, 257, 512)
    assert state["out_blocks.5.skip_linear.weight"].shape == (512, 1024)
    assert state["in_blocks.0.attn.qkv.weight"].shape == (1536, 512)
    assert state["decoder_pred.weight"].shape == (12, 512)


@pytest.mark.parametrize("filter", ["step", "freeu_box"])
def test_a_fixed_filter_adds_no_tensor_to_the_state(filter):
    plain, filtered = UViT(**SMALL), UViT(**SMALL, skip=SkipSettings(filter, s=0.5))
    assert plain.state_dict().keys() == filtered.state_dict().keys()


def test_a_learned_filter_adds_its_numbers_and_no_more():
    plain, filtered = UViT(**SMALL), UViT(**SMALL, skip=SkipSettings("butterworth", s=0.9))
    added = {k: v.shape for k, v in filtered.state_dict().items() if k not in plain.state_dict()}
    names = [f"long_skips.{i}.learned.{name}.raw" for i in (0, 1) for name in ("s", "cutoff")]
    assert added == dict.fromkeys(names, (1,))
    flat = UViT(**SMALL, skip=SkipSettings("flat", s=0.9)).state_dict().keys()
    assert flat - plain.state_dict().keys() == {f"long_skips.{i}.learned.s.raw" for i in (0, 1)}


@pytest.mark.parametrize(("filter", "b"), [("butterworth", 1.0), ("step", 1.2)])
def test_a_filter_breaks_no_graph(filter, b):
    check_compiled("eager", filter, b)


@pytest.mark.slow
@pytest.mark.parametrize("filter", FILTERS)
def test_every_filter_compiles(filter):
    check_compiled("inductor", filter, 1.2 if filter == "butterworth" else 1.0)


@pytest.mark.parametrize("filter", FILTERS)
def test_the_denoiser_of_every_filter_is_one_graph_and_exports(filter):
    torch.compiler.reset()
    skip = SkipSettings(filter, s=1.0 if filter == "none" else 0.5, b=1.2)
    denoiser = Denoiser(fill(UViT(**SMALL, num_classes=2, skip=skip)), "cosine").eval()
    batch = torch.randn(2, 3, 8, 8), torch.tensor([0.2, 0.9]), torch.tensor([0, 1])
    exported = torch.export.export(denoiser, batch).module()
    compiled = torch.compile(denoiser, fullgraph=True, backend="eager")
    for run in (exported, compiled):
        torch.testing.assert_close(run(*batch), denoiser(*batch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("filter", FILTERS)
def test_narrow_precisions_have_finite_losses_and_gradients(filter, dtype):
    skip = SkipSettings(filter, s=1.0 if filter == "none" else 0.5, b=1.2)
    denoiser = Denoiser(fill(UViT(**SMALL, num_classes=2, skip=skip)), "cosine", "x0")
    x0, eps = torch.randn(2, 4, 3, 8, 8)
    t = torch.tensor([0.0, 0.3, 0.9, 1.0])
    with torch.autocast("cpu", dtype):
        loss = denoiser.loss(x0, eps, t, torch.tensor([0, 1, 2, 0])).mean()
    loss.backward()
    assert loss.isfinite()
    for name, parameter in denoiser.named_parameters():
        assert parameter.grad.isfinite().all(), name
    if denoiser.backbone.long_skips[0].learned:
        gradients = [p.grad for p in denoiser.backbone.long_skips.parameters()]
        assert any(g.abs() > 0 for g in gradients)


def check_compiled(backend, filter, b):
    torch.compiler.reset()
    skip = SkipSettings(filter, s=1.0 if filter == "none" else 0.5, b=b)
    model = fill(UViT(**SMALL, num_classes=2, skip=skip))
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([10.0, 900.0])
    y = torch.tensor([0, 1])
    outputs, gradients = [], []
    for run in (model, compiled):
        model.zero_grad()
        outputs.append(run(x, t, y))
        outputs[-1].square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_s_1_and_b_1_are_exactly_the_unmodified_network(num_classes):
    model = fill(UViT(**SMALL, num_classes=num_classes)).eval()
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([10.0, 900.0])
    before = model(x, t)
    for window in (None, Window(0.0, 0.5)):
        override_skips(model.long_skips, s=1.0, b=1.0, cutoff=0.9, filter="step", window=window)
        assert torch.equal(model(x, t), before)
        override_skips(model.long_skips, s=0.0, b=1.5, window=window)
        assert not torch.equal(model(x, t), before)
    override_skips(model.long_skips)
    assert torch.equal(model(x, t), before)


def test_s_0_removes_the_mean_of_the_skip():
    model = UViT(**SMALL)
    override_skips(model.long_skips, s=0.0, cutoff=0.1)
    features = torch.randn(2, 17, 16) + 3
    for long_skip in model.long_skips:
        _, skip = long_skip(features, features, torch.tensor([0.1, 0.9]))
        torch.testing.assert_close(skip[:, 1:].mean(1), torch.zeros(2, 16), atol=1e-5, rtol=0)


def test_lists_run_from_the_outermost_skip_to_the_innermost():
    """The innermost skip joins the first out-block, so it alone changes that block's input."""
    model = fill(UViT(**SMALL)).eval()
    seen = {}
    for i, block in enumerate(model.out_blocks):
        block.register_forward_pre_hook(lambda _, args, i=i: seen.__setitem__(i, args[1].clone()))
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([500.0])
    model(x, t)
    plain = dict(seen)
    override_skips(model.long_skips, s=[0.0, 1.0])
    model(x, t)
    assert torch.equal(seen[0], plain[0])  # innermost: untouched
    assert not torch.equal(seen[1], plain[1])  # outermost: filtered


@pytest.mark.parametrize(
    ("skips", "chosen"),
    [
        ("all", [0, 1, 2]),
        ("inner", [2]),
        ("outer", [0]),
        ("1", [1]),
        ("2,0", [2, 0]),
        ([1, 2], [1, 2]),
    ],
)
@pytest.mark.parametrize("filter", ["none", "step", "butterworth"])
def test_skips_that_are_not_chosen_stay_as_trained(skips, chosen, filter):
    """What they learned too; chosen ones take the values of a list in the order of their names."""
    skip = SkipSettings(filter, s=1.0 if filter == "none" else 0.9, b=1.1)
    model = UViT(**{**SMALL, "depth": 6}, skip=skip)
    for i, long_skip in enumerate(model.long_skips):
        for value in long_skip.learned.values():
            value.raw.data += 0.1 * (i + 1)
    trained = [long_skip.settings for long_skip in model.long_skips]
    values = [0.2 + 0.1 * k for k in range(len(chosen))]
    override_skips(model.long_skips, skips=skips, s=values, b=1.4, filter="step")
    for i, long_skip in enumerate(model.long_skips):
        if i in chosen:
            numbers = (long_skip.settings.s, long_skip.settings.b)
            assert numbers == (values[chosen.index(i)], 1.4)
        else:
            assert long_skip.override is None
            assert long_skip.settings == trained[i]


def test_all_is_every_skip_and_the_default():
    model = fill(UViT(**SMALL)).eval()
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([100.0, 900.0])
    outputs = []
    for override in ({}, {"skips": "all"}, {"skips": "1,0"}, {"skips": "inner"}):
        override_skips(model.long_skips, s=0.3, b=1.4, **override)
        outputs.append(model(x, t))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[3])
    with Denoiser(model).skips(skips="inner", s=0.3, b=1.4):
        assert torch.equal(model(x, t), outputs[3])


def test_the_window_selects_images_by_their_time():
    model = fill(UViT(**SMALL)).eval()
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([100.0, 900.0])
    trained = model(x, t)
    override_skips(model.long_skips, s=0.2, b=1.4)
    changed = model(x, t)
    override_skips(model.long_skips, s=0.2, b=1.4, window=Window(0.5, 1.0))
    windowed = model(x, t)
    torch.testing.assert_close(windowed[0], trained[0])
    torch.testing.assert_close(windowed[1], changed[1])
    assert not torch.allclose(trained[1], changed[1])


def test_an_override_keeps_what_it_does_not_name():
    model = UViT(**SMALL, skip=SkipSettings("step", s=0.8, cutoff=0.6, b=1.1))
    override_skips(model.long_skips, b=1.5)
    chosen = model.long_skips[0].settings
    assert (chosen.filter, chosen.s, chosen.cutoff, chosen.b) == ("step", 0.8, 0.6, 1.5)
    override_skips(model.long_skips, filter="none")
    assert model.long_skips[0].settings.s == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"s": [0.1, 0.2, 0.3]}, "s has 3 values"),
        ({"b": [-1.0]}, "b is -1.0"),
        ({"s": 0.5, "cutoff": 2.0}, "cutoff is 2.0"),
        ({"cutoff": 0.5}, "give s as well"),
        ({"filter": "step"}, "give s as well"),
        ({"filter": "bandpass"}, "bandpass"),
        ({"filter": "none", "s": 0.5}, "without a filter"),
        (
            {"skips": "2", "s": 0.5},
            "skips is '2'; accepted: all, inner, outer, split, or",
        ),
        ({"skips": "", "s": 0.5}, "skips is ''"),
        ({"skips": "inner,0", "s": 0.5}, "skips is 'inner,0'"),
        ({"skips": [], "s": 0.5}, "skips is "),
        ({"skips": [-1], "s": 0.5}, "skips is "),
        ({"skips": "inner", "s": [0.5, 1.0]}, "s has 2 values; accepted: 1, for the long skips 1 "),
    ],
)
def test_a_wrong_override_changes_nothing(wrong, message):
    model = UViT(**SMALL)
    with pytest.raises(ValueError, match=message):
        override_skips(model.long_skips, **wrong)
    assert all(long_skip.override is None for long_skip in model.long_skips)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patch_size": 3}, "img_size is 8"),
        ({"depth": 5}, "depth is 5"),
        ({"num_heads": 3}, "num_heads is"),
        ({"num_classes": -1}, "num_classes is -1"),
    ],
)
def test_sizes_that_do_not_fit_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        UViT(**{**SMALL, **wrong})


def test_gradient_checkpointing_changes_memory_only():
    skip = SkipSettings("step", s=0.5)
    plain = fill(UViT(**SMALL, skip=skip))
    saving = fill(UViT(**SMALL, skip=skip, grad_checkpoint=True))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([10.0, 900.0])
    for model in (plain, saving):
        model(x, t).square().mean().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_no_label_is_the_null_class():
    model = fill(UViT(**SMALL, num_classes=3)).eval()
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([10.0, 900.0])
    assert torch.equal(model(x, t), model(x, t, torch.tensor([3, 3])))
    assert not torch.equal(model(x, t), model(x, t, torch.tensor([0, 1])))


@pytest.mark.parametrize("filter", FILTERS)
def test_bfloat16_autocast_stays_close(filter):
    skip = SkipSettings(filter, s=1.0 if filter == "none" else 0.5, b=1.2)
    model = fill(UViT(**SMALL, skip=skip)).eval()
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([10.0, 900.0])
    with torch.autocast("cpu", torch.bfloat16):
        narrow = model(x, t)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), model(x, t), atol=0.05, rtol=0.05)
