"""Experts, the hypergradient, the distillation methods and real subsets that make a small training set."""
