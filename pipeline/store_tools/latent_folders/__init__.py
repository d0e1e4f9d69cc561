"""Published layouts of latents, one file per layout: what they hold, and reading it in the order of the images.

Only `import_latents.py` imports this package.
"""
