package hostd

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"troth/hooks/ask"
	"troth/launcher/domain"
	"troth/proof"
)

// canaryName is one name for all canaries, so that one that a crash left behind is found.
const canaryName = "troth-hook-canary"

// canaryXML is a domain that must not start: marked, and under a launch id that nobody announced. It has no disk, no network, no guest. Were it to start, its
// CPUs would stand still.
const canaryXML = `<domain type="%s">
  <name>` + canaryName + `</name>
  <uuid>%s</uuid>
  <title>Troth: must be refused, or the hook is not live; may be destroyed</title>
  <metadata>
    <troth:launch xmlns:troth="urn:troth:launch:v1" id="%s"/>
  </metadata>
  <memory unit="KiB">1024</memory>
  <vcpu>1</vcpu>
  <os><type>hvm</type></os>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <controller type="usb" model="none"/>
    <memballoon model="none"/>
  </devices>
</domain>
`

// CanaryVirt is libvirt as a canary needs it.
type CanaryVirt interface {
	Named(ctx context.Context, name string) (domain.UUID, error)
	Inactive(ctx context.Context, id domain.UUID) ([]byte, error)
	Live(ctx context.Context, id domain.UUID) ([]byte, error)
	CreatePaused(ctx context.Context, xml []byte) error
	Destroy(ctx context.Context, id domain.UUID) error
}

// Canary asks libvirt to start a domain that the hook has to refuse. It needs neither TPM nor verdict nor registry. One is under way at a time.
type Canary struct {
	Virt CanaryVirt

	kinds []string // of domains, the one that libvirt took last first

	mu    sync.Mutex
	uuid  domain.UUID // of the canary under way; zero: none
	id    [32]byte
	heard bool
}

// Heard takes a question that was answered, and says whether it was about the canary.
func (c *Canary) Heard(q ask.Question, allowed bool) (own bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	own = !c.uuid.IsZero() && domain.UUID(q.UUID) == c.uuid && q.LaunchID == c.id
	if own && !allowed && q.Op == ask.OpPrepare {
		c.heard = true
	}
	return own
}

// Sweep ends a canary that a crash, or a libvirt that did not answer in time, left behind. A stranger's domain of that name is left alone.
func (c *Canary) Sweep(ctx context.Context) error {
	id, err := c.Virt.Named(ctx, canaryName)
	if err != nil {
		return unasked(err)
	}
	if id.IsZero() {
		return nil
	}
	defined, err := c.Virt.Inactive(ctx, id)
	if err != nil {
		return unasked(err)
	}
	live, err := c.Virt.Live(ctx, id)
	if err != nil {
		return unasked(err)
	}
	if defined != nil || live != nil && !bytes.Contains(live, []byte("urn:troth:launch:v1")) {
		return &NotLive{Undecided: true, Why: "the canary's name is taken by another domain", Facts: []proof.Fact{{Name: "name", Value: canaryName}, {Name: "uuid", Value: id.String()}},
			Remedy: "Rename or remove that domain; the hook is tried by itself then."}
	}
	if err := c.Virt.Destroy(ctx, id); err != nil {
		return unasked(err)
	}
	return nil
}

// Run tries once. Nil: libvirt asked the hook, the hook asked us, and libvirt heeded its refusal. Everything else is a *NotLive.
func (c *Canary) Run(ctx context.Context) error {
	if c.kinds == nil {
		c.kinds = []string{"kvm", "qemu"} // a libvirt may know one of both only, and says so before it runs any hook
	}
	var last error
	for i, kind := range c.kinds {
		decided, err := c.try(ctx, kind)
		if decided {
			c.kinds[0], c.kinds[i] = c.kinds[i], c.kinds[0]
			return err
		}
		last = err
	}
	return last
}

// try starts one canary. decided: libvirt came as far as the hook.
func (c *Canary) try(ctx context.Context, kind string) (decided bool, err error) {
	uuid, id := c.announce()
	err = c.Virt.CreatePaused(ctx, fmt.Appendf(nil, canaryXML, kind, uuid, hex.EncodeToString(id[:])))
	heard := c.taken()
	var veto interface {
		Denied() (code string, denied bool)
	}
	if errors.As(err, &veto) {
		if code, denied := veto.Denied(); denied {
			return true, judgeVeto(code, heard, err)
		}
	}
	// It stands there paused, or may yet appear: a crash before this line, or a Destroy that fails, leaves it to the next Sweep.
	soon, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	ended := c.Virt.Destroy(soon, uuid)
	if err != nil {
		return heard, unasked(err)
	}
	n := &NotLive{Why: "libvirt started a domain that has to be refused: it does not heed the hook", Facts: []proof.Fact{{Name: "canary", Value: uuid.String()}, {Name: "hook asked", Value: fmt.Sprint(heard)}},
		Remedy: "See that troth-hook is installed, then send libvirtd or virtqemud a SIGHUP: it looks for hooks only when it starts."}
	if heard {
		n.Remedy = "Another program stands between libvirt and troth-hook, and drops its exit status: install troth-hook itself."
	}
	if ended != nil {
		n.Facts = append(n.Facts, proof.Fact{Name: "cannot destroy it yet", Value: ended.Error()})
	}
	return true, n
}

// judgeVeto: a veto counts when it was our own.
func judgeVeto(code string, heard bool, err error) error {
	switch {
	case heard && code == ask.GrantMissing.String():
		return nil
	case code == ask.HostdUnreachable.String():
		return &NotLive{Why: "the hook does not reach troth-hostd", Facts: []proof.Fact{{Name: "libvirt", Value: err.Error()}},
			Remedy: "See that hook.socket is the socket which troth-hook asks (docs/hook.md)."}
	case code == "":
		return &NotLive{Why: "something else than troth-hook refuses domains in its place", Facts: []proof.Fact{{Name: "libvirt", Value: err.Error()}},
			Remedy: "Install troth-hook itself as the hook, and look at what stands in qemu.d."}
	case !heard:
		return &NotLive{Why: "the canary was refused in our name, and nobody asked us", Facts: []proof.Fact{{Name: "libvirt", Value: err.Error()}},
			Remedy: "Install troth-hook itself as the hook; see that no second troth-hostd answers it."}
	default:
		return &NotLive{Why: "the hook refuses for another reason than ours", Facts: []proof.Fact{{Name: "code", Want: ask.GrantMissing.String(), Got: code}},
			Remedy: "Install the troth-hook that belongs to this troth-hostd."}
	}
}

// unasked: libvirt did not come as far as the hook, so nobody knows.
func unasked(err error) *NotLive {
	return &NotLive{Undecided: true, Why: "whether libvirt calls the hook could not be tried", Facts: []proof.Fact{{Name: "libvirt", Value: err.Error()}},
		Remedy: "See that libvirtd or virtqemud runs and that troth-hostd may start domains; it is tried again by itself."}
}

func (c *Canary) announce() (uuid domain.UUID, id [32]byte) {
	rand.Read(uuid[:])
	uuid[6], uuid[8] = uuid[6]&0x0f|0x40, uuid[8]&0x3f|0x80 // RFC 9562, version 4
	rand.Read(id[:])
	c.mu.Lock()
	defer c.mu.Unlock()
	c.uuid, c.id, c.heard = uuid, id, false
	return uuid, id
}

func (c *Canary) taken() (heard bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	heard, c.uuid = c.heard, domain.UUID{}
	return heard
}
