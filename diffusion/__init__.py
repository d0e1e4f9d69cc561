"""The mathematics between data and noise: the path, the training losses, the samplers."""
