"""Simulation: cocotb benches and the Verilator harness."""
