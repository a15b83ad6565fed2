"""One stage of the pipeline at one commit, on some machine."""
