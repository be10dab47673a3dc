// Models of the multiplier slices, for simulating netlists: Yosys has none of these two. Only what the units use is modelled;
// anything else instantiates a module that does not exist, so that the netlist is refused.

module DSP48E2 #(
    parameter ACASCREG = 1, parameter ADREG = 1, parameter ALUMODEREG = 1, parameter AREG = 1, parameter BCASCREG = 1, parameter BREG = 1,
    parameter CARRYINREG = 1, parameter CARRYINSELREG = 1, parameter CREG = 1, parameter DREG = 1, parameter INMODEREG = 1,
    parameter MREG = 1, parameter OPMODEREG = 1, parameter PREG = 1,
    parameter A_INPUT = "DIRECT", parameter B_INPUT = "DIRECT", parameter USE_MULT = "MULTIPLY", parameter USE_SIMD = "ONE48",
    parameter AMULTSEL = "A", parameter BMULTSEL = "B", parameter PREADDINSEL = "A", parameter [47:0] RND = 48'd0
) (
    input CLK, input [29:0] A, input [17:0] B, input [47:0] C, input [26:0] D, input [47:0] PCIN, input [29:0] ACIN, input [17:0] BCIN,
    input [4:0] INMODE, input [3:0] ALUMODE, input [8:0] OPMODE, input [2:0] CARRYINSEL,
    input CARRYIN, input CARRYCASCIN, input MULTSIGNIN,
    input CEA1, input CEA2, input CEAD, input CEALUMODE, input CEB1, input CEB2, input CEC, input CECARRYIN, input CECTRL, input CED,
    input CEINMODE, input CEM, input CEP,
    input RSTA, input RSTALLCARRYIN, input RSTALUMODE, input RSTB, input RSTC, input RSTCTRL, input RSTD, input RSTINMODE, input RSTM,
    input RSTP,
    output [47:0] P, output [47:0] PCOUT
);
    generate
        if (A_INPUT != "DIRECT" || B_INPUT != "DIRECT" || USE_MULT != "MULTIPLY" || USE_SIMD != "ONE48" || BMULTSEL != "B" || AREG > 1
            || ALUMODEREG != 0 || CREG != 0 || OPMODEREG != 0 || INMODEREG != 0 || PREADDINSEL != "A")
            DSP48E2_used_in_a_way_that_is_not_modelled refused ();
    endgenerate
    reg [26:0] a1 = 0, d1 = 0, ad1 = 0;
    reg [17:0] b1 = 0, b2 = 0;
    reg [44:0] m1 = 0;
    reg [47:0] p1 = 0;
    wire [26:0] a = AREG == 1 ? a1 : A[26:0];
    wire [26:0] d = DREG == 1 ? d1 : D;
    wire [17:0] b = BREG == 2 ? b2 : BREG == 1 ? b1 : B;
    wire [26:0] a_used = INMODE[1] ? 27'd0 : a;
    wire [26:0] sum = (INMODE[2] ? d : 27'd0) + (INMODE[3] ? -a_used : a_used);
    wire [26:0] multiplicand = AMULTSEL == "AD" ? (ADREG == 1 ? ad1 : sum) : a;
    wire signed [44:0] product = $signed(multiplicand) * $signed(b);
    wire [44:0] m = MREG == 1 ? m1 : product;
    wire [47:0] xy = OPMODE[3:0] == 4'b0101 ? {{3{m[44]}}, m} : 48'd0;
    wire [47:0] z = OPMODE[6:4] == 3'b001 ? PCIN : OPMODE[6:4] == 3'b010 ? p1 : OPMODE[6:4] == 3'b011 ? C : 48'd0;
    wire [47:0] w = OPMODE[8:7] == 2'b10 ? RND : 48'd0;
    wire [47:0] total = xy + z + w;
    assign P = PREG == 1 ? p1 : total;
    assign PCOUT = P;
    always @(posedge CLK) begin
        if (CEA2) a1 <= A[26:0];
        if (CED) d1 <= D;
        if (CEAD) ad1 <= sum;
        if (BREG == 2 ? CEB1 : CEB2) b1 <= B;
        if (CEB2) b2 <= b1;
        if (CEM) m1 <= product;
        if (CEP) p1 <= total;
    end
endmodule

module MULT18X18D #(
    parameter REG_INPUTA_CLK = "NONE", parameter REG_INPUTA_CE = "CE0", parameter REG_INPUTB_CLK = "NONE", parameter REG_INPUTB_CE = "CE0",
    parameter REG_PIPELINE_CLK = "NONE", parameter REG_PIPELINE_CE = "CE0", parameter REG_OUTPUT_CLK = "NONE",
    parameter REG_OUTPUT_CE = "CE0"
) (
    input A0, input A1, input A2, input A3, input A4, input A5, input A6, input A7, input A8, input A9, input A10, input A11,
    input A12, input A13, input A14, input A15, input A16, input A17,
    input B0, input B1, input B2, input B3, input B4, input B5, input B6, input B7, input B8, input B9, input B10, input B11,
    input B12, input B13, input B14, input B15, input B16, input B17,
    input C0, input C1, input C2, input C3, input C4, input C5, input C6, input C7, input C8, input C9, input C10, input C11,
    input C12, input C13, input C14, input C15, input C16, input C17,
    output P0, output P1, output P2, output P3, output P4, output P5, output P6, output P7, output P8, output P9, output P10,
    output P11, output P12, output P13, output P14, output P15, output P16, output P17, output P18, output P19, output P20,
    output P21, output P22, output P23, output P24, output P25, output P26, output P27, output P28, output P29, output P30,
    output P31, output P32, output P33, output P34, output P35,
    input SIGNEDA, input SIGNEDB, input SOURCEA, input SOURCEB, input CLK0, input CLK1, input CLK2, input CLK3,
    input CE0, input CE1, input CE2, input CE3, input RST0, input RST1, input RST2, input RST3
);
    wire [17:0] a_in = {A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0}, b_in = {B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0};
    reg [17:0] a1 = 0, b1 = 0;
    reg [35:0] m1 = 0, p1 = 0;
    wire [17:0] a = REG_INPUTA_CLK == "NONE" ? a_in : a1;
    wire [17:0] b = REG_INPUTB_CLK == "NONE" ? b_in : b1;
    wire signed [18:0] a_wide = {SIGNEDA & a[17], a}, b_wide = {SIGNEDB & b[17], b};
    wire signed [37:0] product = a_wide * b_wide;
    wire [35:0] m = REG_PIPELINE_CLK == "NONE" ? product[35:0] : m1;
    wire [35:0] p = REG_OUTPUT_CLK == "NONE" ? m : p1;
    assign {P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18, P17, P16, P15, P14,
        P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0} = p;
    always @(posedge CLK0) if (CE0) begin
        a1 <= a_in;
        b1 <= b_in;
        m1 <= product[35:0];
        p1 <= m;
    end
endmodule
