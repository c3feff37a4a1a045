"""Rewrites of a program, and the manager that runs and checks them."""
