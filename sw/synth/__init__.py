"""Units measured by open tools: area and LUT levels by Yosys, frequency by nextpnr. Every run is cached by content."""
from sw.synth.levels import LongestPath
from sw.synth.measure import Synthesis, Timing, area, levels, netlist, synthesize, timing

__all__ = ["LongestPath", "Synthesis", "Timing", "area", "levels", "netlist", "synthesize", "timing"]
