package hostd

import (
	"path/filepath"

	"troth/hooks/ask"
	"troth/hostd/audit"
	"troth/launcher"
	"troth/launcher/domain"
	"troth/proof"
)

// AuditPath is where the audit log of a state folder is.
func AuditPath(state string) string { return filepath.Join(state, "audit", "log") }

// audited is the journal that tells the audit log. A grant is on the disk there before libvirt may hear of the domain: without it nothing starts.
// All else is noted, and costs nobody a sync.
type audited struct {
	launcher.Journal
	log *audit.Log
}

// Append implements launcher.Journal.
func (a audited) Append(e *launcher.Entry) error {
	r := audit.Record{Actor: "hostd", UUID: e.UUID, Launch: e.Launch}
	if e.Refusal != nil {
		r.Code = string(e.Refusal.Code)
	}
	if e.What == launcher.WroteGranted {
		r.What = audit.Granted
		if err := a.log.Append(r); err != nil {
			return err
		}
		return a.Journal.Append(e)
	}
	if err := a.Journal.Append(e); err != nil {
		return err
	}
	if r.What = told[e.What]; r.What != "" {
		a.log.Note(r)
	}
	return nil
}

// told is what the audit log calls an entry of the journal; the others are on the way to one of these, but for strays, of which the journal has some only (strayed).
var told = map[string]string{
	launcher.WroteRunning:   audit.Proved,
	launcher.WroteRefused:   audit.Refused,
	launcher.WroteBroken:    audit.Broken,
	launcher.WroteSaved:     audit.Saved,
	launcher.WroteStopped:   audit.Stopped,
	launcher.WroteForgotten: audit.Forgotten,
}

// Audited notes that somebody asked for a change through the API, or was forbidden to. few is the kind of those who could ask as often as they like, and
// empty for engines and operators. It says whether there is a line of its own for it.
func (d *Daemon) Audited(caller, few, route, uuid string, forbidden bool) bool {
	if d.Audit == nil {
		return true // a server without a daemon at work, in tests
	}
	r := audit.Record{What: audit.Asked, Actor: cut(caller), Route: route}
	if id, err := domain.ParseUUID(uuid); err == nil {
		r.UUID = id.String()
	}
	if forbidden {
		r.What, r.Code = audit.Forbidden, string(proof.Forbidden)
	}
	if few != "" {
		return d.Audit.NoteFew(few, r)
	}
	d.Audit.Note(r)
	return true
}

// heard notes a hook that was refused.
func (d *Daemon) heard(q ask.Question, a ask.Answer) {
	if !a.Allow {
		d.Audit.Note(audit.Record{What: audit.Hook, Actor: "libvirt", UUID: domain.UUID(q.UUID).String(), Code: a.Code.String(), Route: q.Op.String() + " " + q.SubOp.String()})
	}
	poke(d.kick)
}

// strayed notes a stray and what was done with it. uuid is empty where only a volume tells whose it is.
func (d *Daemon) strayed(kind, uuid, done string) {
	d.Audit.NoteFew(kind, audit.Record{What: audit.Stray, Actor: "hostd", Code: string(proof.GrantMissing), UUID: uuid, Route: done})
}

// unread notes a launch that was refused before the journal could name its domain.
func unread(log *audit.Log, book *launcher.Book) func(v View) {
	return func(v View) {
		if v.Refusal != nil && !v.DryRun && book.Launch(v.ID) == nil {
			log.Note(audit.Record{What: audit.Refused, Actor: "hostd", Code: string(v.Refusal.Code), UUID: v.UUID, Launch: v.ID})
		}
	}
}

func cut(s string) string { return s[:min(len(s), 200)] }
