"""Which α is worth it: known before the training."""
