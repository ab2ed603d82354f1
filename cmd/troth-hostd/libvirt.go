package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"troth/launcher"
	"troth/launcher/domain"
	"troth/launcher/virt"
)

// libvirtd is launcher/virt as the daemon knows it. It connects when it is first asked and again whenever libvirt was away.
type libvirtd struct {
	uri string
	log *slog.Logger

	mu    sync.Mutex
	conn  *virt.Virt
	watch *virt.Watch
}

func (l *libvirtd) connect(ctx context.Context) (*virt.Virt, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		return l.conn, nil
	}
	conn, err := virt.Connect(ctx, l.uri, l.log)
	if err != nil {
		return nil, err
	}
	l.conn, l.watch = conn, conn.Watch()
	return conn, nil
}

// Close ends the connection.
func (l *libvirtd) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return nil
	}
	l.watch.Close()
	return l.conn.Close()
}

// found gives nil for a domain that is not there.
func found(xml []byte, err error, none ...error) ([]byte, error) {
	for _, n := range none {
		if errors.Is(err, n) {
			return nil, nil
		}
	}
	return xml, err
}

// Inactive reads the definition as it can be put back, passwords of a stranger's included: it goes to the journal, which is ours alone.
func (l *libvirtd) Inactive(ctx context.Context, id domain.UUID) ([]byte, error) {
	c, err := l.connect(ctx)
	if err != nil {
		return nil, err
	}
	all, err := c.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range all {
		if d.UUID == id.String() && d.Persistent {
			xml, err := c.Definition(ctx, id.String())
			return found(xml, err, virt.ErrNoDomain)
		}
	}
	return nil, nil
}

func (l *libvirtd) Live(ctx context.Context, id domain.UUID) ([]byte, error) {
	c, err := l.connect(ctx)
	if err != nil {
		return nil, err
	}
	xml, err := c.LiveXML(ctx, id.String())
	return found(xml, err, virt.ErrNoDomain, virt.ErrState)
}

func (l *libvirtd) Named(ctx context.Context, name string) (domain.UUID, error) {
	c, err := l.connect(ctx)
	if err != nil {
		return domain.UUID{}, err
	}
	all, err := c.List(ctx)
	if err != nil {
		return domain.UUID{}, err
	}
	for _, d := range all {
		if d.Name == name {
			return domain.ParseUUID(d.UUID)
		}
	}
	return domain.UUID{}, nil
}

func (l *libvirtd) Define(ctx context.Context, xml []byte) error {
	c, err := l.connect(ctx)
	if err != nil {
		return err
	}
	return c.Define(ctx, xml)
}

func (l *libvirtd) Undefine(ctx context.Context, id domain.UUID) error {
	c, err := l.connect(ctx)
	if err != nil {
		return err
	}
	_, err = found(nil, c.Undefine(ctx, id.String()), virt.ErrNoDomain)
	return err
}

func (l *libvirtd) CreatePaused(ctx context.Context, xml []byte) error {
	c, err := l.connect(ctx)
	if err != nil {
		return err
	}
	return c.CreatePaused(ctx, xml)
}

func (l *libvirtd) Save(ctx context.Context, id domain.UUID, path string) error {
	c, err := l.connect(ctx)
	if err != nil {
		return err
	}
	return c.Save(ctx, id.String(), path)
}

func (l *libvirtd) RestorePaused(ctx context.Context, path string, xml []byte) error {
	c, err := l.connect(ctx)
	if err != nil {
		return err
	}
	return c.RestorePaused(ctx, path, xml)
}

func (l *libvirtd) Resume(ctx context.Context, id domain.UUID) error {
	c, err := l.connect(ctx)
	if err != nil {
		return err
	}
	if state, err := c.State(ctx, id.String()); err == nil && (state == "running" || state == "blocked") {
		return nil // recovery finds it so when only the note of it was lost
	}
	return c.Resume(ctx, id.String())
}

func (l *libvirtd) Destroy(ctx context.Context, id domain.UUID) error {
	c, err := l.connect(ctx)
	if err != nil {
		return err
	}
	_, err = found(nil, c.Destroy(ctx, id.String()), virt.ErrNoDomain)
	return err
}

func (l *libvirtd) Process(ctx context.Context, id domain.UUID, user *uint32) (*launcher.Process, error) {
	p, err := virt.FindProcess(ctx, id.String(), user)
	if err != nil {
		return nil, err
	}
	return process(p), nil
}

func (l *libvirtd) ProcessAt(_ context.Context, pid int, start uint64) (*launcher.Process, error) {
	p, err := virt.ReadProcess(pid, start)
	if errors.Is(err, virt.ErrNoProcess) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return process(p), nil
}

func (l *libvirtd) Taints(ctx context.Context, id domain.UUID) ([]string, error) {
	c, err := l.connect(ctx)
	if err != nil {
		return nil, err
	}
	all, err := c.Taints(ctx, id.String())
	_, err = found(nil, err, virt.ErrNoDomain, virt.ErrState)
	return all, err
}

func (l *libvirtd) Pause(ctx context.Context, id domain.UUID) error {
	c, err := l.connect(ctx)
	if err != nil {
		return err
	}
	if state, err := c.State(ctx, id.String()); err == nil && state == "paused" {
		return nil
	}
	_, err = found(nil, c.Pause(ctx, id.String()), virt.ErrNoDomain, virt.ErrState)
	return err
}

func process(p *virt.Process) *launcher.Process {
	out := &launcher.Process{PID: p.PID, Start: p.Start, UID: p.UID, Exe: p.Exe, Loads: p.Loads()}
	for _, f := range p.Open {
		out.Open = append(out.Open, file(f))
	}
	for _, f := range p.Named {
		out.Named = append(out.Named, file(f))
	}
	return out
}

// Runs looks at the processes alone: a hook may be waiting, and libvirt would make us wait for it.
func (l *libvirtd) Runs(ctx context.Context, id domain.UUID, user *uint32) (bool, error) {
	n, err := virt.Processes(ctx, id.String(), user)
	return n > 0, err
}

func file(f virt.File) launcher.File {
	return launcher.File{Path: f.Path, Dev: f.Dev, Ino: f.Ino, Writable: f.Writable, Option: f.Option}
}

func (l *libvirtd) Version(ctx context.Context) (string, error) {
	c, err := l.connect(ctx)
	if err != nil {
		return "", err
	}
	v, err := c.Version(ctx)
	if err != nil {
		return "", err
	}
	return "libvirt " + v.Libvirt + ", " + v.Hypervisor, nil
}

func (l *libvirtd) Running(ctx context.Context) ([]domain.UUID, error) {
	c, err := l.connect(ctx)
	if err != nil {
		return nil, err
	}
	all, err := c.List(ctx)
	if err != nil {
		return nil, err
	}
	var running []domain.UUID
	for _, d := range all {
		if d.State == "shutoff" || d.State == "none" {
			continue
		}
		id, err := domain.ParseUUID(d.UUID)
		if err != nil {
			return nil, err
		}
		running = append(running, id)
	}
	return running, nil
}

func (l *libvirtd) Autostart(ctx context.Context, id domain.UUID) (bool, error) {
	c, err := l.connect(ctx)
	if err != nil {
		return false, err
	}
	due, err := c.Autostart(ctx, id.String())
	if errors.Is(err, virt.ErrNoDomain) {
		return false, nil
	}
	return due, err
}

// Session numbers the connection that is open now; 0: there is none.
func (l *libvirtd) Session() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return 0
	}
	return l.conn.Session()
}

func (l *libvirtd) Next(ctx context.Context) error {
	if _, err := l.connect(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	w := l.watch
	l.mu.Unlock()
	_, _, err := w.Next(ctx)
	return err
}
