"""LightningDiT (arXiv 2501.01423). Only the pipeline may import this package."""
