"""JiT, a transformer on pixels that predicts the image (arXiv 2511.13720).

Only the pipeline may import this package.
"""
