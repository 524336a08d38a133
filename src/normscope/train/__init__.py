"""Data sources, networks and the training loop that records what it does."""
