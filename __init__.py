"""repa-pipe: encode images once, then train SiT with representation alignment from the store, many times."""

__version__ = "0.1.0"
