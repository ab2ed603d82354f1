package hostd

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"troth/hooks/ask"
	"troth/launcher"
	"troth/launcher/domain"
)

// Registry publishes which domains and volumes belong to hostd, in state_dir/gate/registry: hooks read it also while hostd is away.
type Registry struct {
	Path string
	Book *launcher.Book
	Log  *slog.Logger

	mu      sync.Mutex
	failure string
}

// RegistryPath is where the registry of a state folder is.
func RegistryPath(state string) string { return filepath.Join(state, "gate", "registry") }

// Publish writes the registry as the book has it.
func (r *Registry) Publish() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	out, err := r.Contents()
	if err != nil {
		return err
	}
	err = os.MkdirAll(filepath.Dir(r.Path), 0o755)
	if err == nil {
		err = ask.WriteRegistry(r.Path, out)
	}
	r.failure = ""
	if err != nil {
		r.failure = err.Error()
	}
	return err
}

// Contents is the registry as the book has it now.
func (r *Registry) Contents() (out ask.Registry, err error) {
	for _, d := range r.Book.Domains() {
		if !d.Registered {
			continue
		}
		id, err := domain.ParseUUID(d.UUID)
		if err != nil {
			return out, err
		}
		out.UUIDs = append(out.UUIDs, id)
		for _, v := range d.Volumes {
			out.Volumes = append(out.Volumes, ask.Volume{Path: v.Path, Dev: v.Dev, Ino: v.Ino})
		}
	}
	return out, nil
}

// Failure says why the newest registry could not be published; empty when it was.
func (r *Registry) Failure() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failure
}

// Run publishes whenever the book changed, the newest state only, until ctx ends.
func (r *Registry) Run(ctx context.Context, changed <-chan struct{}) {
	for {
		wait := time.Hour
		if err := r.Publish(); err != nil {
			r.Log.Error("cannot publish the registry, it will be tried again", "error", err.Error())
			wait = time.Second
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-time.After(wait):
		}
	}
}
