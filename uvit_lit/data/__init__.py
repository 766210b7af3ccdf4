"""Data sets: images in memory, batches that are a function of seed and step."""
