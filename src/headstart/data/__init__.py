"""Datasets, their splits, and preprocessing: from image files to the input of a network."""
