"""``pvec steer``: verbs that make steering vectors, measure them and hand them on."""
