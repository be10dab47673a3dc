"""Hardware: Amaranth components. Imports amaranth and the standard library only."""
