"""The stages: every file in this folder is one command of the CLI, with `run(config) -> Result`.

The packages in it hold what stages are made of (`encoding`, `training`, `sampling`, `evaluation`, `ablation`,
`reporting`, `store_tools`), commands that only print (`listings`), what stages hand to each other (`artifacts`), and
what knows nothing of the project (`runtime`). Only the command line imports stages.
"""
