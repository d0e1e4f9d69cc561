"""SR-DiT (arXiv 2512.12386). Only the pipeline may import this package."""
