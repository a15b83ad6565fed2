"""The stages of the pipeline. Each one reads its inputs, makes one call, and writes its outputs."""
