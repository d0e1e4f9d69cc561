"""Infrastructure of all stages: devices, ranks, signals, seeds, memory, progress, logging, Ray sessions and actors.

Everything in the pipeline may import this package. From the project, it imports only `errors`.
"""
