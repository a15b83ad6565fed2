"""The stages of the pipeline: each reads, makes one call, and writes."""
