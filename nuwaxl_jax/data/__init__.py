"""Videos and captions: sources, clip sampling, tokens and the input pipeline."""
