"""Fine-tuning on the CLUE tasks: its place in the house; the commands are still to come."""
