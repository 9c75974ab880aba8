"""Predictions over HTTP: shared batches, limits, metrics, a page. Needs the extra `serve`."""
