"""Mirror of run folders in MLflow."""
