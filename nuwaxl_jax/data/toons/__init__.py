"""A procedural cartoon with endless episodes, captions and exact ground truth."""
