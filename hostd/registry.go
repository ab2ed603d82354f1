package hostd

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
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
	Own  []string // folders and files of hostd itself: they stand there as volumes

	mu        sync.Mutex
	failure   string
	published []byte // what lies there, as far as we wrote it
	places    places
}

// RegistryPath is where the registry of a state folder is.
func RegistryPath(state string) string { return filepath.Join(state, "gate", "registry") }

// Publish writes the registry as the book has it. It asks no file system about the volumes: a launch waits for it.
func (r *Registry) Publish() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	out, err := r.contents()
	if err != nil {
		return err
	}
	return r.publish(out)
}

func (r *Registry) publish(out ask.Registry) error {
	text, err := out.Encode()
	if err == nil {
		err = os.MkdirAll(filepath.Dir(r.Path), 0o755)
	}
	if err == nil {
		err = ask.WriteRegistry(r.Path, out)
	}
	r.failure, r.published = "", text
	if err != nil {
		r.failure, r.published = err.Error(), nil
	}
	return err
}

// Look asks where the volumes' paths lead now and gives the registry of now. Where it is another one than the published, it is published first:
// hooks and the reaper know by it what a path that leads to a volume means. A registry that cannot be published is still there to be looked by.
func (r *Registry) Look() (ask.Registry, error) {
	paths := slices.Clone(r.Own)
	for _, d := range r.Book.Domains() {
		for _, v := range d.Volumes {
			if d.Registered {
				paths = append(paths, v.Path)
			}
		}
	}
	r.places.look(paths, patience)
	r.mu.Lock()
	defer r.mu.Unlock()
	out, err := r.contents()
	if err != nil {
		return out, err
	}
	text, err := out.Encode()
	if err == nil && !bytes.Equal(text, r.published) {
		err = r.publish(out)
	}
	if err != nil {
		r.failure = err.Error()
		r.Log.Error("cannot publish the registry", "error", err.Error())
	}
	return out, nil
}

// Contents is the registry as the book has it now, with what the newest look found.
func (r *Registry) Contents() (ask.Registry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.contents()
}

// contents names each volume with the file that the domain was armed with, and where its path leads to another one by now, with that one too: the
// guest may still have the first, and whoever names the path means the second.
func (r *Registry) contents() (out ask.Registry, err error) {
	for _, path := range r.Own {
		v, known := r.places.now(path)
		if !known {
			v = ask.Volume{Path: path}
		}
		out.Volumes = append(out.Volumes, v)
	}
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
			was := ask.Volume{Path: v.Path, Dev: v.Dev, Ino: v.Ino}
			out.Volumes = append(out.Volumes, was)
			if now, known := r.places.now(v.Path); known && now != was {
				out.Volumes = append(out.Volumes, now)
			}
		}
	}
	return out, nil
}

// Leads says where a volume's path led when it was last asked.
func (r *Registry) Leads(path string) (launcher.Volume, bool) {
	v, known := r.places.now(path)
	return launcher.Volume{Path: v.Path, Dev: v.Dev, Ino: v.Ino}, known
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
