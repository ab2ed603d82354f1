package audit

import "time"

// Kinds of records that somebody can cause as often as he likes. Each has little room, and none of another's: see NoteFew.
const (
	Strangers = "strangers" // calls by somebody without a certificate, or by a user of the host that the configuration does not name
	Callers   = "callers"   // calls with a certificate of another role
	Tenants   = "tenants"   // calls that a tenant may make
	Domains   = "domains"   // strays in libvirt
	Processes = "processes" // strays that libvirt does not know: any user of the host can have as many as he likes
)

// Of each kind so many records are written at once, and then one in that time: in a year they fill one of the files that are kept.
const (
	fewAtOnce = 100
	fewEvery  = 10 * time.Minute
)

// few is what one kind of records had of its room.
type few struct {
	used int
	left Record // what its records say alike, and how many were only counted
}

// NoteFew is Note for records that somebody can cause as often as he likes: so that they push out no grant, and take no room in the queue from others, what
// comes too often is counted, and the count is written. It says whether this one is noted.
func (l *Log) NoteFew(kind string, r Record) bool {
	l.fewMu.Lock()
	defer l.fewMu.Unlock()
	f := l.few[kind]
	if f == nil {
		f = &few{}
		l.few[kind] = f
	}
	if f.used >= fewAtOnce {
		f.left = Record{What: r.What, Code: r.Code, Actor: kind, Count: f.left.Count + 1}
		return false
	}
	f.used++
	l.Note(r)
	return true
}

// tally writes the counts that NoteFew kept. A kind that kept to its room since the last time has one record more of it.
func (l *Log) tally() {
	l.fewMu.Lock()
	var counts []Record
	for _, f := range l.few {
		switch {
		case f.left.Count > 0:
			counts = append(counts, f.left)
			f.left = Record{}
		case f.used > 0:
			f.used--
		}
	}
	l.fewMu.Unlock()
	for _, r := range counts {
		l.log.Warn("not noted one by one", "what", r.What, "of", r.Actor, "count", r.Count)
		l.group(r)
	}
}
