"""Models, their split into backbone and head, initial weights, and saved networks."""
