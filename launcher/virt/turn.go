package virt

import (
	"context"
	"encoding/xml"
	"strings"
)

// turn waits until no call about this domain's definition is with libvirt, and takes the place. libvirtd works on several calls of one client at once and
// in no order, and a call that nobody waits for any more is still one of them. Nothing is asked of libvirt after ctx has ended.
func (v *Virt) turn(ctx context.Context, uuid string) (free func(), err error) {
	for {
		v.mu.Lock()
		before := v.turns[uuid]
		if before == nil && ctx.Err() == nil {
			mine := make(chan struct{})
			v.turns[uuid] = mine
			v.mu.Unlock()
			return func() {
				v.mu.Lock()
				delete(v.turns, uuid)
				v.mu.Unlock()
				close(mine)
			}, nil
		}
		v.mu.Unlock()
		select {
		case <-before: // nil: never
		case <-ctx.Done():
			return nil, &Error{Op: "wait for an earlier call about the definition of", UUID: uuid, Kind: ErrNotReturned, Cause: ctx.Err()}
		}
	}
}

// uuidIn is the UUID that a definition names; empty for none, or for what is no definition: libvirt judges that.
func uuidIn(definition []byte) string {
	var d struct {
		UUID string `xml:"uuid"`
	}
	if err := xml.Unmarshal(definition, &d); err != nil {
		return ""
	}
	return strings.ToLower(strings.TrimSpace(d.UUID))
}
