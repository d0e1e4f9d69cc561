"""The `repa-pipe store` commands: inspection, verification, export, and import of REPA's layout.

Only the command line imports this package. It imports `artifacts`, `runtime` and the libraries.
"""
