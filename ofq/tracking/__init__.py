"""The mirror of run folders in MLflow."""
