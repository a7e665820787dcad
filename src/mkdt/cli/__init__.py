"""The command ``mkdt``."""
