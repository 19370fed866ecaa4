"""mergekit's YAML: read as it is, and written from a merge recipe of ours."""
