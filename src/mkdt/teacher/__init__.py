"""The self-supervised teacher: losses, training, and teachers or targets from elsewhere."""
