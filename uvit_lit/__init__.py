"""U-ViT diffusion models with frequency filters on their long skip connections."""
