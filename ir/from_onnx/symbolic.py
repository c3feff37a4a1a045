"""Shape arithmetic with symbolic dimensions, in NumPy on object arrays."""
