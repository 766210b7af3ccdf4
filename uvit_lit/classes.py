"""Names of classes: CIFAR-10's and ImageNet's for weights that do not say theirs."""

from difflib import get_close_matches

from uvit_lit.errors import InputError

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def class_names(count: int) -> list[str]:
    """Names for a number of classes.

    Args:
        count: Number of classes.

    Returns:
        CIFAR-10's for 10, ImageNet's for 1000 (those of torchvision, in its order); else the
        numbers themselves.
    """
    if count == len(CIFAR10):
        return CIFAR10
    if count == 1000:
        from torchvision.models import ResNet18_Weights

        return list(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
    return [str(k) for k in range(count)]


def find_class(name: str | int, known: list[str]) -> int:
    """Label of a class by its name, then by its name in any case, or by its number.

    Raises:
        ValueError: If there is none; it names those that are close, or all where they are few.
    """
    name = str(name)
    if name in known:
        return known.index(name)
    names = [other.lower() for other in known]
    if name.lower() in names:
        return names.index(name.lower())
    if name.isdecimal() and int(name) < len(known):
        return int(name)
    accepted = known if len(known) <= 20 else get_close_matches(name.lower(), names, 5, 0.5)
    raise InputError(
        f"no class {name!r}; accepted: {', '.join(accepted) or 'names of ImageNet'}, or a number "
        f"from 0 to {len(known) - 1}"
    )
