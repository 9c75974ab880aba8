"""Models for other runtimes: ONNX, TensorFlow SavedModel, compiled programs of jax."""
