"""Training and testing under a subject-disjoint protocol; loop.py is the training script."""
