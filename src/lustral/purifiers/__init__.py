"""Purifiers: kernels (init, step, readout), one idea per file."""
