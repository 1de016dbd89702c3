"""Pure foundations: addressed noise, kernels and how to differentiate them, threats, votes, specs."""
