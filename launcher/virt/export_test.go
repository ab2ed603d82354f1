package virt

// Calls counts the calls that have not returned from libvirt, also those that nobody waits for any more.
func (v *Virt) Calls() int { return len(v.slots) }
