"""The tasks as TensorFlow Datasets: `import finetune.datasets.clue_tasks` registers them.

Fine-tuning reads the same files without TensorFlow; these are for who has a tf.data pipeline.
"""
