"""Experiment trackers, one file per library; `tracker.py` defines the interface, `opening.py` selects trackers.

They do not replace the files in the run folder. Only `monitor.py` of the training package imports this package. Each
library is imported when its tracker starts.
"""
