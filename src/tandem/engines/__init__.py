"""vLLM's servers: which build, where the weights are, how they are launched, watched and stopped."""
