"""Public image weights in, and out again."""
