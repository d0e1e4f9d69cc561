"""DiT-DH, RAE's diffusion transformer with a wide, shallow head (arXiv 2510.11690). Only the pipeline may import this
package.
"""
