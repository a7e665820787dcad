"""Methods, data sets and students of your own: one file each (CONTRIBUTING.md)."""
