"""The model card of a file of weights: what it says, and the defaults that it may set."""

import math
from pathlib import Path

from huggingface_hub import ModelCardData, metadata_load

from uvit_lit.errors import InputError
from uvit_lit.options import RECOMMENDABLE, is_recommendable
from uvit_lit.settings import SkipSettings, skips_in_words
from uvit_lit.weights import Weights

CARD = "README.md"
"""Name of the model card beside the weights in a directory, as on the Hub."""


SHOWN_APART = ("in_chans", "img_size", "num_classes", "skip")
"""Arguments of a network that have a row of their own in the model card."""


def read_header(card: Path, weights: Weights) -> None:
    """Take over what the header of a model card says of ``skips`` and ``recommended``.

    Args:
        card: The file; without one nothing changes.
        weights: Changed in place.

    Raises:
        ValueError: If the header is not YAML, or a value is not accepted.
    """
    if not card.is_file():
        return
    try:
        header = metadata_load(card) or {}
    except Exception:  # of the parser, or no text
        raise InputError(f"the header of the model card {card} is not YAML") from None
    skips = header.get("skips", weights.default_skips)
    if not isinstance(skips, str | int):
        raise InputError(
            f"skips of the model card {card} is a {type(skips).__name__}; accepted: "
            "all, inner, outer, split or numbers with commas"
        )
    recommended = header.get("recommended", weights.recommended)
    if not is_recommendable(recommended):
        raise InputError(
            f"recommended of the model card {card} is {recommended!r}; accepted: values by name, "
            f"of {', '.join(RECOMMENDABLE)}"
        )
    weights.default_skips, weights.recommended = str(skips), recommended


def describe_weights(weights: Weights, skips: list[SkipSettings], results: str = "") -> str:
    """Model card as Markdown, from what the file says and nothing else.

    Args:
        weights: A network and what is known about it.
        skips: What acts on its long skips, outermost first, learned numbers as they are.
        results: Measured figures, as Markdown with their sample size, seeds and data.
    """
    arguments = weights.arguments
    count = sum(math.prod(tensor.shape) for tensor in weights.tensors.values())
    size = arguments["img_size"]
    names = {"uvit": "U-ViT", "unet": "U-Net"}
    shape = {name: value for name, value in arguments.items() if name not in SHOWN_APART}
    header = ModelCardData(
        library_name="uvit_lit",
        license=weights.licence,
        tags=[names[weights.backbone].lower(), "diffusion"],
        pipeline_tag="unconditional-image-generation",
        skips=weights.default_skips,
        recommended=weights.recommended or None,
    )
    rows = {
        "Parameters": f"{count:,}",
        "Input": f"{arguments['in_chans']} x {size} x {size}",
        "Network": ", ".join(f"{name} {value}" for name, value in shape.items()),
        "Classes": ", ".join(weights.class_names[:20]) or "none",
        "Data": weights.data.get("name", "unknown"),
        "Training steps": "unknown" if weights.step is None else str(weights.step),
        "Schedule, prediction": f"{weights.schedule}, {weights.prediction}",
        "Autoencoder": weights.data.get("autoencoder", "none: it makes pixels"),
        "Long skips, outermost first": "; ".join(
            f"{skip.filter}, s {skip.s:.3g}, cutoff {skip.cutoff:.3g}, b {skip.b:.3g}"
            if skip.filter != "none"
            else f"no filter, b {skip.b:.3g}"
            for skip in skips
        ),
        "Long skips that a single s or b acts on": skips_in_words(weights.default_skips),
        "Licence": weights.licence or "not stated",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
{header.to_yaml()}
---

# {names[weights.backbone]} with frequency filters on its long skips

| | |
|---|---|
{table}

## Use

```python
from uvit_lit import Model, generate

model = Model.from_pretrained("user/name")
images = generate(model, 16, s=0.9, b=1.05)  # without s and b: as trained
```

## Results

{results or "None were given."}
"""
