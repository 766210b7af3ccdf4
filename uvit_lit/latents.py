"""The frozen first stage of latent diffusion: images to latents and back."""

import hashlib
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uvit_lit.errors import InputError

ACCEPTED = "accepted: a directory with a diffusers AutoencoderKL, or its name on the Hub"


class Autoencoder:
    """An ``AutoencoderKL`` of diffusers that does not train.

    Attributes:
        channels: Channels of a latent.
        factor: Pixels of a latent's pixel, along an axis.

    Args:
        network: The ``AutoencoderKL``.
        device: Where to compute.
    """

    def __init__(self, network: Any, device: torch.device | str = "cpu") -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        config = network.config
        self.channels = int(config.latent_channels)
        self.factor: int = 2 ** (len(config.block_out_channels) - 1)
        self.shift = float(config.shift_factor or 0.0)
        self.scale = float(config.scaling_factor)

    def to(self, device: torch.device | str) -> "Autoencoder":
        """Move to a device; returns itself."""
        self.network.to(device)
        return self

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and the scale: the key of what was encoded with them."""
        digest = hashlib.sha256(f"{self.shift} {self.scale}".encode())
        for name, tensor in self.network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Distribution of the latent of each image.

        Args:
            pixels: (images, 3, H, W) uint8, H and W multiples of ``factor``.

        Returns:
            (images, 2, channels, H / factor, W / factor) float32 on the CPU: mean and standard
            deviation, shifted and scaled to about unit variance (0.18215 for Stable Diffusion's).
        """
        images = pixels.to(self.network.device).float() / 127.5 - 1
        latent = self.network.encode(images).latent_dist
        mean, std = (latent.mean - self.shift) * self.scale, latent.std * self.scale
        return torch.stack([mean, std], dim=1).float().cpu()

    @torch.inference_mode()
    def decode(self, latents: Tensor, batch_size: int = 8) -> Tensor:
        """Images of latents, which are scaled as ``encode`` scales them.

        Args:
            latents: (images, channels, h, w).
            batch_size: Images decoded at once.

        Returns:
            (images, 3, h * factor, w * factor) float32 on the CPU, around [-1, 1], not clipped.
        """
        z = latents / self.scale + self.shift
        parts = [
            self.network.decode(part.to(self.network.device)).sample for part in z.split(batch_size)
        ]
        return torch.cat([part.float().cpu() for part in parts])


def load_autoencoder(name: str, device: torch.device | str = "cpu") -> Autoencoder:
    """Load an autoencoder from safetensors files.

    Args:
        name: A local directory, in which it may be the sub-directory ``vae``, or a name on the
            Hugging Face Hub, ``user/name`` or ``user/name@revision``.
        device: Where to compute.

    Raises:
        ValueError: If a local directory holds none, or a damaged one.
        OSError: If it cannot be downloaded.
    """
    from diffusers import AutoencoderKL
    from safetensors import SafetensorError

    directory = Path(name)
    if (directory / "vae" / "config.json").is_file():
        directory = directory / "vae"
    local = directory.exists() or name.count("/") != 1 or name.startswith(("/", ".", "~"))
    repository, _, revision = name.partition("@")
    try:
        with warnings.catch_warnings(action="ignore"):  # of diffusers about its own calls
            network, loaded = AutoencoderKL.from_pretrained(
                str(directory) if local else repository,
                revision=None if local else revision or None,
                use_safetensors=True,
                local_files_only=local,
                low_cpu_mem_usage=False,  # True needs accelerate
                output_loading_info=True,
            )
        if wrong := [*loaded["missing_keys"], *loaded["unexpected_keys"]]:
            raise InputError(f"tensors are missing or too many: {', '.join(sorted(wrong)[:3])}")
        return Autoencoder(network, device)
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if local:
            raise InputError(f"no autoencoder in {name} ({reason}); {ACCEPTED}") from None
        raise OSError(f"cannot load the autoencoder {name} ({reason}); {ACCEPTED}") from None


def check_latents(autoencoder: Autoencoder | None, channels: int) -> None:
    """Raise a ``ValueError`` unless a network of so many channels fits the autoencoder."""
    if autoencoder is None and channels != 3:
        raise InputError(
            f"the network has {channels} channels, so it makes latents: name their autoencoder; "
            f"{ACCEPTED}"
        )
    if autoencoder is not None and channels != autoencoder.channels:
        raise InputError(
            f"the network has {channels} channels, the latents of the autoencoder "
            f"{autoencoder.channels}"
        )
