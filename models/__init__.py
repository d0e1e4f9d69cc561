"""Neural networks: frozen image encoders, VAEs, the SiT diffusion transformer and the moving average of its weights.

`flops` and `throughput` build on `encoders`, `sit` and `vae`, which build on `weight_files` and `precision`; `encoders`
and `sit` do not import each other. The pipeline may import this package. From the rest of the project it imports only
`converter` and `errors`, and importing it loads neither torch nor timm.
"""
