"""Training examples that the frozen networks have seen already: their latents and text states, on disk."""
