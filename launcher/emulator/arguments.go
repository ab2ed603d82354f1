package emulator

import (
	"encoding/hex"
	"strings"
)

// channelName is the guest's end of the channel that only hostd gives a guest; it stands in the arguments of every guest of ours,
// also when another libvirt was handed our definition.
const channelName = "troth.guest.0"

// maxUUIDs bounds what one command line tells.
const maxUUIDs = 64

// identities gives every UUID that the arguments give the guest: -uuid, and -smbios type=1,uuid=. QEMU takes one or two hyphens, and the last of
// several; each of them counts here.
func identities(args []string) (all [][16]byte) {
	for i := 0; i+1 < len(args) && len(all) < maxUUIDs; i++ {
		option, ok := strings.CutPrefix(args[i], "-")
		if !ok {
			continue
		}
		switch strings.TrimPrefix(option, "-") {
		case "uuid":
			if u, ok := parseUUID(args[i+1]); ok {
				all = append(all, u)
			}
		case "smbios":
			for _, part := range strings.Split(args[i+1], ",") {
				if v, found := strings.CutPrefix(part, "uuid="); found {
					if u, ok := parseUUID(v); ok {
						all = append(all, u)
					}
				}
			}
		}
	}
	return all
}

// parseUUID reads the one form that QEMU reads, 8-4-4-4-12 hex digits of either case.
func parseUUID(s string) (u [16]byte, ok bool) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return u, false
	}
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != len(u) {
		return u, false
	}
	return [16]byte(b), true
}

// hasChannel says whether the arguments make a port of that very name: libvirt writes options as key=value or as JSON.
func hasChannel(args []string) bool {
	for _, a := range args {
		for rest := a; ; {
			i := strings.Index(rest, channelName)
			if i < 0 {
				break
			}
			before, after := rest[:i], rest[i+len(channelName):]
			if strings.HasSuffix(before, "name=") && (after == "" || after[0] == ',') || strings.HasSuffix(before, `"name":"`) && strings.HasPrefix(after, `"`) {
				return true
			}
			rest = after
		}
	}
	return false
}
