"""These are scripts: `make bench` runs them, pytest does not collect them."""

collect_ignore_glob = ["*.py"]
