"""Backbones, students, parameters as flat vectors, and the test for divergence."""
