"""What the simulation changes in the Verilog: the top's reset comes from a register."""
import pytest

from sim.harness import reset_in_register
from sw.errors import DeviceError

TOP = """module part(clk, rst, o);
  input rst;
  wire rst;
endmodule

module accelerator(i__valid, clk, rst, o__valid);
  input clk;
  wire clk;
  input rst;
  wire rst;
  part part (
    .rst(rst)
  );
endmodule
"""


def test_only_the_tops_reset_goes_through_a_register() -> None:
    text = reset_in_register(TOP, "accelerator")
    assert "module accelerator(i__valid, clk, rst_in, o__valid);" in text
    assert "  input rst_in;\n  wire rst_in;\n  reg rst = 1;\n  always @(posedge clk) rst <= rst_in;\n" in text
    assert text.startswith(TOP[: TOP.index("module accelerator")]) and text.endswith("    .rst(rst)\n  );\nendmodule\n")


@pytest.mark.parametrize(("text", "top"), [
    (TOP, "other"), (TOP.replace(", rst, o__valid", ", o__valid"), "accelerator"),
    (TOP.replace("wire rst;\n  part", "part"), "accelerator"),
], ids=["no such module", "no port", "not declared"])  # fmt: skip
def test_verilog_without_a_reset_is_refused(text: str, top: str) -> None:
    with pytest.raises(DeviceError, match=f"no module {top} with a reset port"):
        reset_in_register(text, top)
