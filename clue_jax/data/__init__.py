"""Pretraining data: what a shard is, what a batch is."""
