package eventlog

import "fmt"

// Event types that have a meaning here. Firmware types: TCG PC Client Platform Firmware Profile, 10.4.1. TXT types:
// Intel TXT Software Development Guide, appendix F. The rest: tboot and the Linux Secure Launch patches.
const (
	NoAction     uint32 = 0x3
	HashStart    uint32 = 0x402
	MLEHash      uint32 = 0x404
	TbootModule  uint32 = 0x501
	SlaunchEvent uint32 = 0x502
	SlaunchStart uint32 = 0x503
	SlaunchEnd   uint32 = 0x504
)

var typeNames = map[uint32]string{
	0x1: "EV_POST_CODE", NoAction: "EV_NO_ACTION", 0x4: "EV_SEPARATOR", 0x5: "EV_ACTION", 0x6: "EV_EVENT_TAG",
	0x7: "EV_S_CRTM_CONTENTS", 0x8: "EV_S_CRTM_VERSION", 0xD: "EV_IPL",
	0x401: "PCR_MAPPING", HashStart: "HASH_START", 0x403: "COMBINED_HASH", MLEHash: "MLE_HASH",
	0x40A: "BIOSAC_REG_DATA", 0x40B: "CPU_SCRTM_STAT", 0x40C: "LCP_CONTROL_HASH", 0x40D: "ELEMENTS_HASH",
	0x40E: "STM_HASH", 0x40F: "OSSINITDATA_CAP_HASH", 0x410: "SINIT_PUBKEY_HASH", 0x411: "LCP_HASH",
	0x412: "LCP_DETAILS_HASH", 0x413: "LCP_AUTHORITIES_HASH", 0x414: "NV_INFO_HASH",
	0x415: "COLD_BOOT_BIOS_HASH", 0x416: "KM_HASH", 0x417: "BPM_HASH", 0x418: "KM_INFO_HASH",
	0x419: "BPM_INFO_HASH", 0x41A: "BOOT_POL_HASH", 0x4FE: "RANDVAL", 0x4FF: "CAP_VALUE",
	TbootModule: "TBOOT_MODULE", SlaunchEvent: "SLAUNCH", SlaunchStart: "SLAUNCH_START", SlaunchEnd: "SLAUNCH_END",
}

// TypeName returns the name of an event type for people: "MLE_HASH", or its number. No digest covers it.
func TypeName(t uint32) string {
	if n, ok := typeNames[t]; ok {
		return n
	}
	return fmt.Sprintf("0x%x", t)
}
