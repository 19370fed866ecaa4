"""``pvec steer``: one file per verb."""
