"""Lattice ECP5-85: placed, routed and packed with open tools."""
from .device import Device

DEVICE = Device(
    name="lfe5u-85f",
    luts=83_640,
    lut_inputs=4,
    flip_flops=83_640,
    multipliers=156,
    bram36=104,
    clock_hz=100e6,
    multiplier="mult18x18d",
    memory_bytes=3.0,  # three quarters of an SDRAM of 16 bits at twice the fabric's clock, as on boards with this part
    memory_bits=128,
    placed=True,
    note="208 EBR of 18 kbit; the clock is measured by nextpnr, 100 MHz is a placeholder until then",
)
