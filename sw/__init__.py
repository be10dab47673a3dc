"""Compiler and golden model: NumPy integers. Never imports torch."""
