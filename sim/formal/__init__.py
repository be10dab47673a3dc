"""Formal verification of stream parts: harnesses that watch a unit's ports, and the proofs."""
