"""What a plan says, done to a model: blocks removed, sliced, quantized."""
