package hooks

import "troth/hooks/ask"

// Subject is what a domain's XML says of itself, for hostd's scan of what runs: the same reading as the hook's.
type Subject struct {
	UUID   [16]byte
	Marked bool
}

// Read reads a domain's XML as the hook does. An error says that nobody can be sure of it; the hook refuses such a start, and whoever judges a guest that
// runs already has not decided anything.
func Read(xml []byte) (Subject, error) {
	s, err := scan(xml)
	if err != nil {
		return Subject{}, err
	}
	return Subject{UUID: s.uuid, Marked: s.marked}, nil
}

// Why gives the reasons for which the subject is trusted, by what the registry says, but for volumes: what a running guest has open, its process tells.
func (s Subject) Why(all, registered bool) ask.Flags {
	var f ask.Flags
	if s.Marked {
		f |= ask.Marked
	}
	if all {
		f |= ask.All
	}
	if registered {
		f |= ask.Registered
	}
	return f
}
