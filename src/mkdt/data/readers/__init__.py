"""Readers of published data sets: files found or downloaded, archives read without unpacking, arrays."""
