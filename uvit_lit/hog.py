"""Histograms of oriented gradients of 4 x 4 cells (Dalal and Triggs 2005), for the alignment."""
import math

import torch
import torch.nn.functional as F


def hog(x):
    g = F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    dx, dy = g[..., 1:-1, 2:] - g[..., 1:-1, :-2], g[..., 2:, 1:-1] - g[..., :-2, 1:-1]
    angle = torch.atan2(dy, dx) % math.pi / math.pi * 9
    strength = torch.hypot(dx, dy)
    low = angle.floor()
    share = angle - low
    bins = torch.zeros(len(x), 9, *x.shape[-2:])
    bins.scatter_add_(1, low.long() % 9, strength * (1 - share))
    bins.scatter_add_(1, (low.long() + 1) % 9, strength * share)
    cells = F.avg_pool2d(bins, 4).flatten(2).mT  # B, 64, 9
    return cells - cells.mean(dim=(1, 2), keepdim=True)
