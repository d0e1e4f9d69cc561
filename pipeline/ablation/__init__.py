"""The parts of `ablate`: the sweep file, the job of one run, the runner on Ray, and the table of results.

Only the stage `ablate` imports this package. It imports `reporting`, `artifacts`, `runtime` and the libraries; the
stages of a run are started as commands.
"""
