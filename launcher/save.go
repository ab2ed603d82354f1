package launcher

import (
	"context"
	"errors"

	"troth/launcher/domain"
	"troth/proof"
)

// Saves is the folder of save images, one for each saved domain. An image holds a guest's memory in clear: the folder is its owner's alone.
// UUIDs are in libvirt's text form.
type Saves interface {
	// Path is where the save image of the domain stands or would stand.
	Path(uuid string) string
	// Remove removes the image; it is no error when there is none.
	Remove(uuid string) error
	// List returns the UUIDs of all images that are there.
	List() ([]string, error)
}

// Save ends a guest and keeps its memory in a file from which it can go on. The verifier hears the file's digest: what is restored is that
// file, on this host, once. A domain that is saved stays as it is.
func (l *Launcher) Save(ctx context.Context, uuid string) *proof.Refusal {
	_, id, refusal := l.registered(uuid)
	if refusal != nil {
		return refusal
	}
	uuid = id.String()
	free, refusal := l.claimSoon(ctx, id, claimWithin)
	if refusal != nil {
		return refusal
	}
	defer free()
	d := l.Book.Domain(uuid)
	if d != nil && d.State == StateSaved {
		return nil // whoever asks again has not heard the answer
	}
	if refusal := savable(d); refusal != nil {
		return refusal
	}
	// A crash up to here changes nothing. What is saved is the guest that was proved, and no other that took its place.
	if differs, err := l.drift(ctx, d, id); err != nil {
		return Refusal("save", err)
	} else if differs != nil {
		return differs
	}
	if err := l.Saves.Remove(uuid); err != nil {
		return Refusal("save", err)
	}

	// libvirt writes the memory and ends the guest. A crash from here on: the guest runs on, or is gone and no image is chained. Then the scan closes
	// its link, as of every guest that is gone, and the sweep removes the image, which nobody could restore.
	err := l.Virt.Save(ctx, id, l.Saves.Path(uuid))
	var image proof.Digest
	if err == nil {
		image, err = l.hashSaved(ctx, uuid)
	}
	if err == nil {
		// A crash between the two: the verifier hears that it was saved, and then, by the scan, that it is closed.
		err = l.owe(ChainEvent{Token: d.Token, Link: *d.Link, Event: EventSaved, Attempt: d.Attempt, Image: image})
	}
	if err != nil {
		return l.unsaved(ctx, d, id, Refusal("save", errors.Join(err, l.Saves.Remove(uuid))))
	}
	if err := l.Book.Write(&Entry{What: WroteSaved, Launch: d.Launch, UUID: uuid, Image: &image}); err != nil {
		// It may be on the disk all the same, and then the image has to be there: the sweep decides by what the journal says in the end.
		return l.unsaved(ctx, d, id, Refusal("save", err))
	}
	if err := l.Tell(ctx); err != nil {
		l.Log.Warn("cannot tell the verifier that a guest was saved, it will be tried again", "uuid", uuid, "error", err.Error())
	}
	return nil
}

// savable says whether the guest may be saved at all.
func savable(d *Domain) *proof.Refusal {
	switch {
	case d == nil || d.State != StateProved || d.Link == nil || d.Grant == nil:
		return proof.Refuse(proof.NotRegistered, "only a guest that runs and is proved can be saved")
	case d.Armed:
		return proof.Refuse(proof.RequestInvalid, "an armed domain is not saved: any client could start it, and only hostd restores", proof.Fact{Name: "uuid", Value: d.UUID})
	case d.Grant.Policy.Saves != proof.SavesAllow:
		return proof.Refuse(proof.TokenConstraint, "the token does not allow the guest's memory to be written to a file", proof.Fact{Name: "saves", Want: proof.SavesAllow, Got: "no"})
	}
	return nil
}

func (l *Launcher) hashSaved(ctx context.Context, uuid string) (proof.Digest, error) {
	image, err := l.Images.Measure(ctx, l.Saves.Path(uuid), func(int64, int64) {})
	if err != nil {
		return proof.Digest{}, err
	}
	return image.Digest(), image.Close()
}

// unsaved ends a save that failed. The guest runs on, or is gone: then its link is closed. What cannot be done now is done by the scan.
func (l *Launcher) unsaved(ctx context.Context, d *Domain, id domain.UUID, why *proof.Refusal) *proof.Refusal {
	ctx, cancel := l.undoing(ctx)
	defer cancel()
	runs, err := l.Virt.Runs(ctx, id, l.QEMU)
	if err == nil && !runs {
		err = l.close(d, why)
	}
	if err != nil {
		l.Log.Error("cannot undo a save, it will be tried again", "uuid", d.UUID, "error", err.Error())
	}
	return why
}

// SavedImage is what is known of the image that a restore goes on from.
type SavedImage struct {
	Kept  proof.Digest // when it was saved
	Found proof.Digest // now
}

// holdSaved opens and hashes the image of a restore. Until the guest runs it is held with a lease, so that nobody writes to it unseen.
func (a *attempt) holdSaved(ctx context.Context) *proof.Refusal {
	uuid := a.config.UUID.String()
	d := a.Book.Domain(uuid)
	if d == nil || d.State != StateSaved || d.Saved == nil {
		return proof.Refuse(proof.NotRegistered, "the domain is not saved here: only a saved domain is restored", proof.Fact{Name: "uuid", Value: uuid})
	}
	if d.Token != a.facts.Token || d.Configuration != a.config.Digest() {
		return proof.Refuse(proof.RequestInvalid, "a guest is restored with the token and the configuration that it was saved with", proof.Fact{Name: "uuid", Value: uuid})
	}
	image, err := a.Images.Measure(ctx, a.Saves.Path(uuid), a.w.Hashed)
	if err != nil {
		return Refusal(StepMeasure, err)
	}
	a.saved, a.facts.Saved = image, &SavedImage{Kept: *d.Saved, Found: image.Digest()}
	return nil
}

// recheck asks every image, and the save image, whether it is still what was measured.
func (a *attempt) recheck() []*proof.Refusal {
	all := a.images.recheck()
	if a.saved != nil {
		if err := a.saved.Recheck(); err != nil {
			all = append(all, Refusal(StepMeasure, err))
		}
	}
	return all
}

// savedAgain hashes the save image once more when QEMU has loaded it: libvirt gave the file to QEMU's user meanwhile, so that its times say nothing.
func (a *attempt) savedAgain(ctx context.Context) error {
	if a.saved == nil {
		return nil
	}
	got, err := a.saved.Hash(ctx)
	if err != nil {
		return err
	}
	if want := a.facts.Saved.Found; got != want {
		return differ(proof.ImageChanged, "the save image changed while it was loaded", "saved image", want, got)
	}
	return nil
}

// image is the digest of the save image that a restore goes on from; nil: it is none.
func (a *attempt) image() *proof.Digest {
	if a.facts.Saved == nil {
		return nil
	}
	return &a.facts.Saved.Found
}

// start has libvirt start the guest paused: from its beginning, or from its save image.
func (a *attempt) start(ctx context.Context, xml []byte) error {
	if a.saved == nil {
		return a.Virt.CreatePaused(ctx, xml)
	}
	return a.Virt.RestorePaused(ctx, a.Saves.Path(a.config.UUID.String()), xml)
}

// sweepSaves removes images that no domain is saved in: of saves that a crash cut short, and of guests that run again or were given up.
func (l *Launcher) sweepSaves() error {
	there, err := l.Saves.List()
	errs := []error{err}
	for _, uuid := range there {
		id, err := domain.ParseUUID(uuid)
		if err != nil {
			continue // not ours
		}
		free, refusal := l.claim(id)
		if refusal != nil {
			continue // whoever has it will say
		}
		if d := l.Book.Domain(uuid); d == nil || d.Saved == nil {
			errs = append(errs, l.Saves.Remove(uuid))
		}
		free()
	}
	return errors.Join(errs...)
}
