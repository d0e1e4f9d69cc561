"""Commands that only print what there is: runs, what differs between them, recipes, encoders, and the environment.

The command line imports this package. It uses reporting and artifacts, and nothing in it writes a file.
"""
