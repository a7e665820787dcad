"""Pre-train students on a set and measure them: linear probe, k-NN, fine-tuning."""
