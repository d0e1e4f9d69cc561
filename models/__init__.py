"""The networks: image encoders, latent autoencoders, SiT and the average of its weights."""
