package hostd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"troth/launcher"
	"troth/proof"
	"troth/proof/strict"
	vapi "troth/verifier/api"
)

// maxAnswer bounds what is read of a verifier's answer: a report with a long log of differences fits.
const maxAnswer = 4 << 20

// Verifiers is the list of verifiers as a client: each call goes to the first that answers, beginning with the one that answered last.
type Verifiers struct {
	urls    []string
	http    *http.Client
	timeout time.Duration

	mu    sync.Mutex
	first int // index of the verifier that answered last
	keys  *proof.VerdictKeys
}

// Identity is the TLS key of this host.
type Identity struct {
	Certificate tls.Certificate
	SPKI        proof.Digest // SHA-256 of its SubjectPublicKeyInfo
}

// LoadIdentity reads certificate and key.
func LoadIdentity(cert, key string) (*Identity, error) {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("cannot load the host's certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("cannot read the host's certificate: %w", err)
	}
	return &Identity{Certificate: pair, SPKI: sha256.Sum256(leaf.RawSubjectPublicKeyInfo)}, nil
}

// LoadPool reads certificates of authorities.
func LoadPool(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read certificates: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("cannot read certificates: %s holds none", file)
	}
	return pool, nil
}

// NewVerifiers makes the client. now is what certificates are checked against.
func NewVerifiers(c VerifierConfig, id *Identity, now func() time.Time) (*Verifiers, error) {
	pool, err := LoadPool(c.CA)
	if err != nil {
		return nil, err
	}
	timeout, err := time.ParseDuration(c.Timeout)
	if err != nil {
		return nil, fmt.Errorf("verifier.timeout: %w", err)
	}
	transport := &http.Transport{
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{id.Certificate}, Time: now},
		TLSHandshakeTimeout:   timeout,
		ResponseHeaderTimeout: timeout,
		MaxIdleConnsPerHost:   64,
		MaxConnsPerHost:       256,
		IdleConnTimeout:       time.Minute,
	}
	var urls []string
	for _, u := range c.URL {
		urls = append(urls, strings.TrimSuffix(u, "/"))
	}
	return &Verifiers{urls: urls, http: &http.Client{Transport: transport}, timeout: timeout}, nil
}

// Close drops idle connections.
func (v *Verifiers) Close() { v.http.CloseIdleConnections() }

// challenged is a refusal that brought the next challenge.
type challenged struct {
	*proof.Refusal
	next []byte
}

func (c *challenged) Unwrap() error { return c.Refusal }

// call asks the verifiers in turn until one answers. body is sent as it is; out, if not nil, is read strictly.
func (v *Verifiers) call(ctx context.Context, method, path string, body []byte, out any) error {
	v.mu.Lock()
	first := v.first
	v.mu.Unlock()
	var failures []proof.Fact
	for n := range v.urls {
		at := (first + n) % len(v.urls)
		if n > 0 {
			// The next one hears from every host whose first one failed: not all at once.
			select {
			case <-time.After(rand.N(50 * time.Millisecond)):
			case <-ctx.Done():
			}
		}
		err := v.once(ctx, v.urls[at], method, path, body, out)
		var unreachable *unreachable
		if !errors.As(err, &unreachable) {
			v.mu.Lock()
			v.first = at
			v.mu.Unlock()
			return err
		}
		failures = append(failures, proof.Fact{Name: v.urls[at], Value: unreachable.Error()})
		if ctx.Err() != nil {
			break
		}
	}
	return proof.Refuse(proof.VerifierUnreachable, "no verifier answers", failures...)
}

// unreachable says that one verifier gave no answer that counts.
type unreachable struct{ cause error }

func (u *unreachable) Error() string { return u.cause.Error() }

func (v *Verifiers) once(ctx context.Context, base, method, path string, body []byte, out any) error {
	ctx, cancel := context.WithTimeout(ctx, v.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, base+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("cannot ask the verifier: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := v.http.Do(req)
	if err != nil {
		return &unreachable{err}
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return &unreachable{err}
	}
	if len(answer) > maxAnswer {
		return &unreachable{fmt.Errorf("answer of more than %d bytes", maxAnswer)}
	}
	if resp.StatusCode/100 == 2 {
		if out == nil {
			return nil
		}
		if err := strict.JSON(answer, maxAnswer, out); err != nil {
			return &unreachable{fmt.Errorf("answer cannot be read: %w", err)}
		}
		return nil
	}
	var p vapi.Problem
	if err := json.Unmarshal(answer, &p); err != nil || p.Code == "" {
		return &unreachable{fmt.Errorf("status %d without a refusal", resp.StatusCode)}
	}
	refusal := proof.Problem{Type: p.Type, Title: p.Title, Status: p.Status, Detail: p.Detail, Code: p.Code, Remedy: p.Remedy, Facts: p.Facts, Also: p.Also}.Refusal()
	if next, err := strict.Base64(p.Challenge); err == nil && p.Challenge != "" {
		return &challenged{refusal, next}
	}
	return refusal
}

// Release implements launcher.Verifier.
func (v *Verifiers) Release(ctx context.Context, token string, statement []byte) (launcher.Release, error) {
	body, err := strict.Encode(vapi.ReleaseRequest{Token: token, Statement: statement})
	if err != nil {
		return launcher.Release{}, err
	}
	var out vapi.Release
	if err := v.call(ctx, http.MethodPost, "/v1/releases", body, &out); err != nil {
		return launcher.Release{}, err
	}
	return launcher.Release{Receipt: out.Receipt, Sealed: out.Sealed}, nil
}

// Report implements launcher.Verifier.
func (v *Verifiers) Report(ctx context.Context, e launcher.ChainEvent) error {
	body, err := strict.Encode(e)
	if err != nil {
		return err
	}
	return v.call(ctx, http.MethodPost, "/v1/chain-events", body, nil)
}

// Challenge asks for a challenge.
func (v *Verifiers) Challenge(ctx context.Context) (*vapi.Challenge, error) {
	var c vapi.Challenge
	if err := v.call(ctx, http.MethodGet, "/v1/challenge", nil, &c); err != nil {
		return nil, err
	}
	return &c, nil
}

// Attest sends evidence.
func (v *Verifiers) Attest(ctx context.Context, evidence []byte) (*vapi.Attestation, error) {
	var a vapi.Attestation
	if err := v.call(ctx, http.MethodPost, "/v1/attestations", evidence, &a); err != nil {
		return nil, err
	}
	return &a, nil
}

// Verdict reads a verdict with the verifier's keys, which it fetches when it does not know the one that signed.
// They are believed because they come over the verifier's TLS key; a tenant pins their root, a host has no use for that.
func (v *Verifiers) Verdict(ctx context.Context, jws string) (*proof.Verdict, *proof.VerdictKeys, error) {
	v.mu.Lock()
	keys := v.keys
	v.mu.Unlock()
	if keys != nil {
		if verdict, err := proof.ParseVerdict(jws, keys); err == nil {
			return verdict, keys, nil
		}
	}
	keys, err := v.fetchKeys(ctx)
	if err != nil {
		return nil, nil, err
	}
	verdict, err := proof.ParseVerdict(jws, keys)
	if err != nil {
		return nil, nil, proof.Refuse(proof.EvidenceInvalid, "the verifier's verdict cannot be read", proof.Fact{Name: "cause", Value: err.Error()})
	}
	v.mu.Lock()
	v.keys = keys
	v.mu.Unlock()
	return verdict, keys, nil
}

func (v *Verifiers) fetchKeys(ctx context.Context) (*proof.VerdictKeys, error) {
	var answer vapi.Keys
	if err := v.call(ctx, http.MethodGet, "/v1/keys", nil, &answer); err != nil {
		return nil, err
	}
	signed, err := strict.JWS(answer.Keys, proof.MaxKeySet)
	if err != nil {
		return nil, fmt.Errorf("cannot read the verifier's keys: %w", err)
	}
	var set proof.KeySet
	if err := strict.Document(signed.Payload, proof.MaxKeySet, &set); err != nil {
		return nil, fmt.Errorf("cannot read the verifier's keys: %w", err)
	}
	return set.Keys()
}

// Enrol presents the TPM's identity.
func (v *Verifiers) Enrol(ctx context.Context, req vapi.EnrolmentRequest) (*vapi.Enrolment, error) {
	body, err := strict.Encode(req)
	if err != nil {
		return nil, err
	}
	var out vapi.Enrolment
	if err := v.call(ctx, http.MethodPost, "/v1/enrolments", body, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Activate shows that the TPM opened the credential, and returns the host's state at the verifier.
func (v *Verifiers) Activate(ctx context.Context, id string, secret []byte) (string, error) {
	body, err := strict.Encode(vapi.Activation{Secret: secret})
	if err != nil {
		return "", err
	}
	defer clear(body)
	var out vapi.HostState
	if err := v.call(ctx, http.MethodPost, "/v1/enrolments/"+id+"/activation", body, &out); err != nil {
		return "", err
	}
	return out.State, nil
}

// Ready asks the verifier that would be asked next whether it is ready.
func (v *Verifiers) Ready(ctx context.Context) error {
	return v.call(ctx, http.MethodGet, "/readyz", nil, nil)
}
