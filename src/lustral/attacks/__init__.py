"""Attacks: threat × loss × gradient × search. An attack only searches; the evaluation projects, verifies and judges."""
