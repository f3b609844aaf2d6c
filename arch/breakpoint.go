package arch

// BreakpointKind says how the hypervisor holds a breakpoint.
type BreakpointKind uint8

// The kinds, with the numbers that the GDB remote protocol gives them in
// its Z packets.
const (
	BreakSoftware BreakpointKind = 0 // TCG holds it outside guest memory; KVM writes 0xcc
	BreakHardware BreakpointKind = 1 // a debug register under KVM: four of them, no guest byte changed
)
