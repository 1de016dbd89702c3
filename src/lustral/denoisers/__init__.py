"""Denoisers D(x, sigma): the currency, its preconditionings, exact oracles and networks."""
