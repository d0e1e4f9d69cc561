"""What `--dry-run` prints: the resolved settings of a command, what it would read, and what it would write.

Only the command line imports this package. Nothing in it writes a file.
"""
