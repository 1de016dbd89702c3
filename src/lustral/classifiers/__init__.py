"""Classifiers: logits from images in [0, 1], normalisation folded in."""
