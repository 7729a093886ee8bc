"""Pretraining on clips without labels: the encoder learns to predict what is hidden from it."""
