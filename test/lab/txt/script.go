package txt

import (
	"crypto/sha256"
	"fmt"
)

// Launcher is what the processor launches, which decides what is measured where.
type Launcher string

// The launchers.
const (
	TbootLegacy Launcher = "tboot-legacy" // kernel and command line to PCR 18, initrd to PCR 19
	TbootDA     Launcher = "tboot-da"     // details and authorities: all modules to PCR 17, PCR 19 unused
	SLaunch     Launcher = "slaunch"      // Linux Secure Launch: initrd to PCR 17, command line to PCR 18, PCR 19 unused
)

// Script is a boot: what there is to measure.
type Script struct {
	Launcher    Launcher
	SINIT       []byte // authenticated code module
	BIOS        []byte // BIOS ACM registration data
	Policy      []byte // launch control policy
	MLE         []byte // tboot, or the kernel's Secure Launch entry
	Kernel      []byte
	CommandLine string
	Initrd      []byte
}

// Example returns a script with a distinct text in every place.
func Example(l Launcher) Script {
	return Script{
		Launcher: l, SINIT: []byte("SINIT ACM 1.4.3"), BIOS: []byte("BIOS ACM registers"), Policy: []byte("any MLE"),
		MLE: []byte("measured launch environment"), Kernel: []byte("vmlinuz"), CommandLine: "intel_iommu=on", Initrd: []byte("initrd"),
	}
}

// step is one measurement: an extend at a locality, or, at locality 0, a line of the log that nothing extends.
type step struct {
	locality byte
	index    int
	typ      uint32
	digest   [32]byte
	text     string
}

// Event types of the log (Intel TXT Software Development Guide, appendix F; tboot; Linux Secure Launch).
const (
	evHashStart     = 0x402
	evMLEHash       = 0x404
	evBIOSRegisters = 0x40A
	evSCRTM         = 0x40B
	evLCPControl    = 0x40C
	evSINITKey      = 0x410
	evLCPAuthority  = 0x413
	evTboot         = 0x501
	evSlaunch       = 0x502
	evSlaunchStart  = 0x503
	evSlaunchEnd    = 0x504
)

// steps returns the measurements after the hash sequence, in order.
func (s Script) steps() ([]step, error) {
	zero := sha256.Sum256([]byte{0, 0, 0, 0})
	acm := []step{
		{3, 17, evBIOSRegisters, sha256.Sum256(s.BIOS), "BIOS ACM registration data"},
		{3, 17, evSCRTM, zero, "processor S-CRTM status"},
		{3, 17, evLCPControl, sha256.Sum256(s.Policy), "launch control policy"},
	}
	mle := step{3, 17, evMLEHash, sha256.Sum256(s.MLE), "measured launch environment"}
	authorities := []step{
		{3, 18, evSINITKey, sha256.Sum256(append([]byte("key of "), s.SINIT...)), "SINIT ACM signing key"},
		{3, 18, evLCPAuthority, sha256.Sum256(append([]byte("signer of "), s.Policy...)), "policy authority"},
	}
	kernel := module(s.CommandLine, s.Kernel)
	initrd := module("", s.Initrd)
	switch s.Launcher {
	case TbootLegacy:
		mle.index = 18
		return append(append(acm, mle),
			step{2, 17, evTboot, zero, "tboot policy control"},
			step{2, 18, evTboot, kernel, "module 0: kernel and command line"},
			step{2, 19, evTboot, initrd, "module 1: initrd"},
		), nil
	case TbootDA:
		return append(append(append(acm, mle), authorities...),
			step{2, 17, evTboot, zero, "tboot policy control"},
			step{2, 17, evTboot, kernel, "module 0: kernel and command line"},
			step{2, 17, evTboot, initrd, "module 1: initrd"},
			step{2, 18, evTboot, sha256.Sum256([]byte("tboot policy authority")), "tboot policy authority"},
		), nil
	case SLaunch:
		return append(append(append(acm, mle), authorities...),
			step{0, 17, evSlaunchStart, [32]byte{}, "Secure Launch: begin"},
			step{2, 17, evSlaunch, sha256.Sum256(s.Kernel), "kernel setup block"},
			step{2, 18, evSlaunch, sha256.Sum256([]byte(s.CommandLine)), "kernel command line"},
			step{2, 17, evSlaunch, sha256.Sum256(s.Initrd), "initrd"},
			step{0, 17, evSlaunchEnd, [32]byte{}, "Secure Launch: end"},
		), nil
	default:
		return nil, fmt.Errorf("cannot boot: unknown launcher %q", s.Launcher)
	}
}

// module is tboot's measurement of a module: H(H(command line) ‖ H(image)).
func module(commandLine string, image []byte) [32]byte {
	c, i := sha256.Sum256([]byte(commandLine)), sha256.Sum256(image)
	return sha256.Sum256(append(c[:], i[:]...))
}
