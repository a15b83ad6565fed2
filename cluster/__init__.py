"""Run the stages of the pipeline as jobs on many machines."""
