"""What `repa-pipe demo` consists of: training steps with the encoder online, and the sections of its report.

Unlike the packages of other stages, it uses whole stages, as the demo does. Only `demo` and benchmarks import it.
"""
