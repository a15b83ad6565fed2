"""Read dvc.yaml, run its stages without DVC, and record the provenance of each run."""
