package launcher

import (
	"context"

	"troth/launcher/domain"
	"troth/proof"
)

// maxSpared bounds how many domains are looked at to find one that can be forgotten.
const maxSpared = 32

// room sees to it that the book has room for a domain. A full book forgets one that was refused, so that nobody has to come and delete what others asked for in
// vain. Launches that are at work at one time may go over the bound by their number.
func (l *Launcher) room(ctx context.Context, uuid string) *proof.Refusal {
	if l.Book.Keeps(uuid) {
		return nil
	}
	spare := l.Book.spare()
	for _, d := range spare[:min(len(spare), maxSpared)] {
		if err := l.forgetRefused(ctx, d.UUID); err != nil {
			return Refusal(StepRead, err)
		}
		if l.Book.Keeps(uuid) {
			return nil
		}
	}
	return proof.Refuse(proof.RequestInvalid, "this host keeps no more domains: forget some")
}

// forgetRefused forgets a domain that was refused, unless somebody has it at work or a guest of it came up after all, which is to be found and ended. It asks
// the kernel, not libvirt, which may be waiting for the hook.
func (l *Launcher) forgetRefused(ctx context.Context, uuid string) error {
	id, err := domain.ParseUUID(uuid)
	if err != nil {
		return err
	}
	free, refusal := l.claim(id)
	if refusal != nil {
		return nil
	}
	defer free()
	if !l.Book.Domain(uuid).spare() {
		return nil
	}
	if runs, err := l.Virt.Runs(ctx, id, l.QEMU); err != nil || runs {
		return nil // or nobody knows
	}
	l.Log.Info("forgetting a domain that was refused, to make room for another", "uuid", uuid)
	return l.Book.Write(&Entry{What: WroteForgotten, UUID: uuid})
}
