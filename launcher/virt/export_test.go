package virt

// Calls counts the calls that have not returned from libvirt, also those that nobody waits for any more.
func (v *Virt) Calls() int { return len(v.slots) }

// Lose does what the end of libvirtd does: the connection in use, if there is one, is lost.
func (v *Virt) Lose() {
	v.mu.Lock()
	s := v.now
	v.mu.Unlock()
	if s != nil {
		v.lose(s)
	}
}
