"""Zynq UltraScale+ ZU3EG: CoDeNet's own part."""
from .device import Device

DEVICE = Device(
    name="xczu3eg",
    luts=70_560,
    lut_inputs=6,
    flip_flops=141_120,
    multipliers=360,
    bram36=216,
    clock_hz=250e6,
    multiplier="dsp48e2",
    memory_bytes=13.0,  # three quarters of LPDDR4-1066 with 32 bits, 4.27 GB/s, in bursts of kilobytes
    fill=(0.95, 0.95, 1.0, 0.97),  # estimates of whole networks are within 3 % (README), multipliers exact
    note="250 MHz is assumed, never claimed as met without the vendor's timing",
)
