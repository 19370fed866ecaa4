"""The command line: one file per kind of verb. Nothing here imports torch before a verb runs."""
