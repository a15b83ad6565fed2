"""How it is computed: device and precision, the frozen part once, the loop over the head, checkpoints."""
