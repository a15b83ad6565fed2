"""The stages of the pipeline: each module reads its inputs, makes one call, and writes its outputs."""
