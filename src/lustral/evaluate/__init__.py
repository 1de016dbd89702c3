"""Evaluation: attacks run, candidates are verified and judged on fresh noise, metrics are folds over stored draws."""
