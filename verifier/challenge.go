package verifier

import (
	"crypto/rand"
	"encoding/binary"
	"sync"
	"time"

	"troth/proof"
	"troth/tpm"
	"troth/tpm/pcr"
)

// A challenge is 56 bytes: issue time (unix ms, big-endian), 16 random bytes, MAC over both and over whom it is for.
// It is stateless, so that any replica that has the key accepts it.
const (
	challengeSize  = 8 + 16 + 32
	challengeAhead = 5 * time.Second // how far a replica's clock may be ahead of ours
)

// Challenge is what a host quotes next.
type Challenge struct {
	Bytes     []byte
	Expires   time.Time
	Selection pcr.Selection
}

// Challenge makes a challenge for the host with this TLS key: it is good over that key alone and, once a host is enrolled
// with the key, for that host's AK alone.
func (v *Verifier) Challenge(spki proof.Digest) Challenge {
	now := v.now()
	b := binary.BigEndian.AppendUint64(nil, uint64(now.UnixMilli()))
	random := make([]byte, 16)
	rand.Read(random)
	b = append(b, random...)
	host := v.hostBySPKI(spki)
	mac := v.challengeMAC(b, spki, akName(host))
	return Challenge{append(b, mac[:]...), now.Add(v.cfg.ChallengeAge), v.selection(host)}
}

func akName(h *Host) tpm.Name {
	if h == nil {
		return tpm.Name{}
	}
	return h.AKName
}

func (v *Verifier) challengeMAC(head []byte, spki proof.Digest, ak tpm.Name) proof.Digest {
	return proof.MAC(v.keys.Load().Challenge, proof.LabelChallenge, head, spki[:], ak[:])
}

// checkChallenge says whether c is a challenge of ours for this host, and young enough. Age counts from its issue.
func (v *Verifier) checkChallenge(c []byte, spki proof.Digest, h *Host) *proof.Refusal {
	if len(c) != challengeSize {
		return proof.Refuse(proof.EvidenceInvalid, "the challenge is not one of this verifier's",
			proof.Fact{Name: "challenge length", Want: itoa(challengeSize), Got: itoa(len(c))})
	}
	if want := v.challengeMAC(c[:24], spki, akName(h)); !want.Equal(proof.Digest(c[24:])) {
		return proof.Refuse(proof.EvidenceInvalid, "the challenge is not one of this verifier's for this host",
			proof.Fact{Name: "challenge", Want: "issued to this host over this key", Got: "another"})
	}
	age := v.now().Sub(time.UnixMilli(int64(binary.BigEndian.Uint64(c))))
	if age > v.cfg.ChallengeAge || age < -challengeAhead {
		return proof.Refuse(proof.EvidenceInvalid, "the challenge is too old",
			proof.Fact{Name: "challenge age", Want: "at most " + v.cfg.ChallengeAge.String(), Got: age.Round(time.Millisecond).String()})
	}
	return nil
}

// spentSet holds challenges that were used, until they expire of themselves. It is in memory: one process judges, a restart
// ends every TLS session, and what a challenge that is used twice could buy is a second verdict of the same fresh state,
// so the disk stays off this path. Replicas will share it by a conditional insert (rows == 1) in their store.
type spentSet struct {
	mu sync.Mutex
	m  map[[challengeSize]byte]time.Time
}

// spend is the conditional insert: of any number of callers with one challenge, one gets true.
func (s *spentSet) spend(c []byte, until time.Time) bool {
	key := [challengeSize]byte(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, used := s.m[key]; used {
		return false
	}
	if s.m == nil {
		s.m = map[[challengeSize]byte]time.Time{}
	}
	s.m[key] = until
	return true
}

func (s *spentSet) prune(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, until := range s.m {
		if now.After(until) {
			delete(s.m, c)
		}
	}
}

// useChallenge spends a challenge that checkChallenge accepted.
func (v *Verifier) useChallenge(c []byte) *proof.Refusal {
	if !v.spent.spend(c, v.now().Add(v.cfg.ChallengeAge+challengeAhead)) {
		return proof.Refuse(proof.EvidenceInvalid, "the challenge was used before",
			proof.Fact{Name: "challenge", Want: "unused", Got: "used"})
	}
	return nil
}
