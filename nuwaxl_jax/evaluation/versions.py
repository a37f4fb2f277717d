"""A number of what each kind of figure means, raised when it changes: what another meaning has kept is read again."""

STORY_SCORE = 2  # evaluation/story_score.py. 2: joins are looked for where a way of making videos has them
IMAGE_METRICS = 1  # evaluation/image_metrics.py
PROTOCOLS = 1  # evaluation/protocols.py, and what the networks are shown (measures.py, features/)
DENOISING = 1  # evaluation/denoising.py

ALL = {"story_score": STORY_SCORE, "image_metrics": IMAGE_METRICS, "protocols": PROTOCOLS, "denoising": DENOISING}
