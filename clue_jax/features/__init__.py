"""From tokens to the rows a model takes."""
