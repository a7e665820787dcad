"""Backbones, students, and parameters as flat vectors."""
