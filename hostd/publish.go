package hostd

import (
	"context"
	"fmt"

	"troth/launcher"
	"troth/proof"
)

// published is the daemon's libvirt: before libvirt hears of a domain, the registry names it. polkit's rule reads the registry, so from
// the definition on nobody else may change or resume what hostd defined; published a moment later, a client that waits for the
// name would have that moment. A crash between the two leaves a registered domain that libvirt does not know: recovery takes both back.
type published struct {
	launcher.Virt
	registry *Registry
}

func (p published) Define(ctx context.Context, xml []byte) error {
	if err := p.registry.Publish(); err != nil {
		return proof.Refuse(proof.Internal, "the registry of trusted domains cannot be published, and others could change this one",
			proof.Fact{Name: "cause", Value: fmt.Sprint(err)})
	}
	return p.Virt.Define(ctx, xml)
}
