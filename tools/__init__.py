"""Command lines for models and measurements."""
