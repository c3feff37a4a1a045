"""Convolutions by Winograd's method: fewer multiplications, more additions."""
