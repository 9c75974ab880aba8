"""Conversion between our parameters, TF-BERT checkpoints and model directories."""
