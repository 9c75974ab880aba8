"""Fine-tuning on the CLUE tasks, and on a person's own."""
