"""Networks that metrics read frames, clips and captions with."""
