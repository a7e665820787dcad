"""Read data sets into uint8 tensors once, and turn pixels into normalised batches."""
