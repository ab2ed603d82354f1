package launcher

import (
	"context"
	"errors"

	"troth/launcher/domain"
	"troth/proof"
)

// What is done to a guest that is trusted and has no grant.
const (
	StrayDestroy = "destroy"
	StrayPause   = "pause"
	StrayReport  = "report"
)

// Granted says whether a guest of this domain may run: it was proved, or whoever has the domain at work will say.
func (l *Launcher) Granted(id domain.UUID) bool {
	return l.Busy(id) || l.Book.Domain(id.String()).Live() != nil || l.recovering(id)
}

// Settled says that nobody has the domain at work: what runs of it is as the book says, or a stray.
func (l *Launcher) Settled(id domain.UUID) bool { return !l.Busy(id) && !l.recovering(id) }

// Ending says that recovery has libvirt end what came up of a launch of this domain that was cut short. Nothing else happens to the domain meanwhile.
func (l *Launcher) Ending(id domain.UUID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ending[id]
}

// ends marks a domain as Ending until done is called. The caller has claimed it.
func (l *Launcher) ends(id domain.UUID) (done func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ending[id] = true
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.ending, id)
	}
}

// Holds says whether the process has a live grant.
func (l *Launcher) Holds(pid int, start uint64) bool { return l.Book.Holds(pid, start) }

// recovering: a launch of this domain was cut short, and recovery will end it.
func (l *Launcher) recovering(id domain.UUID) bool {
	d := l.Book.Domain(id.String())
	return d != nil && d.State == StateLaunching
}

// EndStray does what the policy says to a guest in our libvirt that is trusted and has no grant. done is false when there was nothing to do after
// all: a launch may have begun meanwhile.
func (l *Launcher) EndStray(ctx context.Context, id domain.UUID, policy string) (done bool, err error) {
	turn, ok := l.turn(id)
	if !ok {
		return false, nil
	}
	live, err := l.Virt.Live(ctx, id)
	if err != nil || live == nil {
		return false, err
	}
	free, ok := l.claimAt(id, turn)
	if !ok {
		return false, nil
	}
	defer free()
	if l.Book.Domain(id.String()).Live() != nil || l.recovering(id) {
		return false, nil
	}
	switch policy {
	case StrayDestroy:
		return true, l.Virt.Destroy(ctx, id)
	case StrayPause:
		return true, l.Virt.Pause(ctx, id)
	}
	return true, nil
}

// NoteStray keeps for people that a guest of a known domain was found without a grant. It claims nothing: the domain may be forgotten meanwhile.
func (l *Launcher) NoteStray(uuid string, why *proof.Refusal) error {
	d := l.Book.Domain(uuid)
	if d == nil {
		return nil
	}
	err := l.Book.Write(&Entry{What: WroteStray, Launch: d.Launch, UUID: uuid, Refusal: why})
	if errors.Is(err, errUnknown) {
		return nil
	}
	return err
}
