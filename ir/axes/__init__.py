"""How the axes of inputs, weights and outputs of operators correspond."""
