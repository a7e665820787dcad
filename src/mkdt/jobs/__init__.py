"""What all jobs share: stages, resume points, provenance, code digests, tracking."""
