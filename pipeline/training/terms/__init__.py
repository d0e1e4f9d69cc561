"""The terms of the training objective, one file per term; `term.py` defines the interface.

Only `objective.py` and `setup.py` of the training package import this package. It imports the libraries.
"""
