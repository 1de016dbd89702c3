"""Training: objectives, and the loop as a generator."""
