package proof

import (
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestGenuine(t *testing.T) {
	s := newScene(t)
	b, trust, key := s.make(t), s.trust(t), s.key()
	g, err := Verify(b, trust, key)
	if err != nil {
		t.Fatal(err)
	}
	if len(g.Held) != len(Checks()) {
		t.Errorf("%d checks held, want %d", len(g.Held), len(Checks()))
	}
	if g.Window != (Window{sceneTime + 20, sceneTime + 242}) {
		t.Errorf("window %+v", g.Window)
	}
	if err := Validate(g, WantOf(key)); err != nil {
		t.Error(err)
	}
	p, err := VerifyPublic(b, trust)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Held) != len(publicSteps) {
		t.Errorf("%d checks held in public, want %d", len(p.Held), len(publicSteps))
	}
	if _, err := Verify(b, trust, nil); !errors.Is(err, ErrNoKey) {
		t.Errorf("without a key: %v", err)
	}
	if _, err := Verify(b, nil, key); !errors.Is(err, ErrNoTrust) {
		t.Errorf("without trust: %v", err)
	}
}

// Limits are inclusive, and honest proofs at them pass.
func TestGenuineAtTheLimits(t *testing.T) {
	for name, spoil := range map[string]func(*scene){
		"clock equal":    func(s *scene) { s.onQuote = func(a *attestation) { a.clock = 1_000_000 } },
		"clock at limit": func(s *scene) { s.onQuote = func(a *attestation) { a.clock = 1_000_000 + 180*1150 } },
		"receipt early":  func(s *scene) { s.onReceipt = func(r *Receipt) { r.IssuedAt = sceneTime - replicaSkew } },
		"receipt late":   func(s *scene) { s.onReceipt = func(r *Receipt) { r.IssuedAt = sceneTime + 180 + replicaSkew } },
		"keys from":      func(s *scene) { s.onKeySet = func(k *KeySet) { k.NotBefore = sceneTime + 20 } },
		"keys until":     func(s *scene) { s.onKeySet = func(k *KeySet) { k.NotAfter = sceneTime + 20 } },
		"batch of one":   func(s *scene) { s.others = nil },
		"batch of five":  func(s *scene) { s.others = append(s.others, testDigest("x")) },
		"a later link":   func(s *scene) { s.onStatement = func(x *Statement) { x.Previous = ptr(testDigest("link")) } },
		"a second try":   func(s *scene) { s.onStatement = func(x *Statement) { x.Attempt = 2 } },
		"hardware only": func(s *scene) {
			s.onVerdict = func(v *Verdict) { v.Class = "hardware" }
			s.onTrust = func(tr *Trust) { tr.AllowSoftwareTPM = false }
		},
		"name with space": func(s *scene) { s.onStatement = func(x *Statement) { x.Name = "-rf --x $(id) .." } },
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			spoil(s)
			if _, err := Verify(s.make(t), s.trust(t), s.key()); err != nil {
				t.Error(err)
			}
		})
	}
}

// Every forgery is refused by the check that it is made for; and where a check
// reads nothing for those after it, the forgery is accepted once that check
// alone is taken out: so it passes all others, and the check is needed.
func TestEveryCheckIsNecessary(t *testing.T) {
	reads := []string{"proof-form", "trust-keys", "statement-form", "verdict-signature", "receipt-signature", "ak-form", "quote-signature", "pcr-values", "batch-path"}
	all := slices.Concat(publicSteps, keySteps)
	found := map[string]bool{}
	for _, f := range forgeries() {
		found[f.check] = true
		t.Run(f.name, func(t *testing.T) {
			b, trust, key := f.forge(t)
			_, err := Verify(b, trust, key)
			var invalid *Invalid
			if !errors.As(err, &invalid) || invalid.Name != f.check {
				t.Fatalf("got %v, want check %s", err, f.check)
			}
			_, err = VerifyPublic(b, trust)
			if secret := f.check == "key-token" || f.check == "mac"; secret != (err == nil) {
				t.Errorf("in public: %v", err)
			}
			if slices.Contains(reads, f.check) {
				return
			}
			without := slices.DeleteFunc(slices.Clone(all), func(s step) bool { return s.Name == f.check })
			v := &verification{raw: b, trust: trust, key: key}
			if _, err := v.run(without); err != nil {
				t.Errorf("without its check another one refuses it: %v", err)
			}
		})
	}
	for _, c := range Checks() {
		if !found[c.Name] {
			t.Errorf("no forgery is made for check %d, %s", c.Number, c.Name)
		}
	}
}

func TestChecksAreNumberedInOrder(t *testing.T) {
	for i, c := range Checks() {
		if c.Number != i+1 || c.Name == "" || !strings.HasSuffix(c.Says, ".") {
			t.Errorf("check %d is %+v", i+1, c)
		}
	}
	for i, c := range Wishes() {
		if c.Number != i+1 || c.Name == "" || !strings.HasSuffix(c.Says, ".") {
			t.Errorf("wish %d is %+v", i+1, c)
		}
	}
}

// Every bit of every byte of a proof, with the key and without.
func TestEveryBitFlippedIsRefused(t *testing.T) {
	s := newScene(t)
	b, trust, key := s.make(t), s.trust(t), s.key()
	step := 1
	if testing.Short() {
		step = 61 // a prime, so that every position in a byte is met
	}
	var next, accepted atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			mine := slices.Clone(b)
			for {
				bit := int(next.Add(int64(step))) - step
				if bit >= 8*len(mine) {
					return
				}
				mine[bit/8] ^= 1 << (bit % 8)
				if _, err := Verify(mine, trust, key); err == nil {
					accepted.Add(1)
					t.Errorf("bit %d of byte %d: accepted with the key", bit%8, bit/8)
				}
				if _, err := VerifyPublic(mine, trust); err == nil {
					accepted.Add(1)
					t.Errorf("bit %d of byte %d: accepted without the key", bit%8, bit/8)
				}
				mine[bit/8] ^= 1 << (bit % 8)
			}
		})
	}
	wg.Wait()
	t.Logf("%d bytes, every %d. bit: %d accepted", len(b), step, accepted.Load())
}

// The same without the sum, which anyone can compute: every bit is still refused
// to the tenant, and in public every one outside the MAC.
func TestEveryBitFlippedAndSummedIsRefused(t *testing.T) {
	step := 3
	if testing.Short() {
		step = 509
	}
	s := newScene(t)
	b, trust, key := s.make(t), s.trust(t), s.key()
	p := must[*Proof](t)(ParseProof(b))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			mine := slices.Clone(b)
			for {
				bit := int(next.Add(int64(step))) - step
				if bit >= 8*len(mine) {
					return
				}
				mine[bit/8] ^= 1 << (bit % 8)
				if q, err := ParseProof(mine); err == nil {
					sum, err := q.sum()
					if err != nil {
						t.Error(err)
					}
					q.Sum = sum
					again, err := q.Encode()
					if err != nil {
						t.Error(err)
					}
					if q.Sum != p.Sum { // else only the sum was flipped
						if _, err := Verify(again, trust, key); err == nil {
							t.Errorf("bit %d: accepted with the key", bit)
						}
						if _, err := VerifyPublic(again, trust); err == nil && q.MAC == p.MAC {
							t.Errorf("bit %d: accepted without the key", bit)
						}
					}
				}
				mine[bit/8] ^= 1 << (bit % 8)
			}
		})
	}
	wg.Wait()
}
