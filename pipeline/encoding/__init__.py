"""Components of the encode stages: the work list, the encoders of a group, the encoding of a shard, two runners.

The stages `encode`, `encode_latents`, `encode_features` and `plan` import this package. It imports `runtime` and the
libraries.
"""
