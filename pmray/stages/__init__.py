"""The stages of a run, from a spec to a registered winner; here they meet Ray, MLflow and the terminal."""
