"""Measurements: ``backends`` times the ways to run a network, ``units`` measures cycles, area and frequency of hardware units."""
