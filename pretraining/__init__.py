"""Pretraining: text to shards to a trained model."""
