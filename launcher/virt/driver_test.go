package virt_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"troth/launcher/virt"
)

// libvirt's own test driver: no root, no daemon.
const (
	testURI  = "test:///default"
	testUUID = "6695eb01-f6a4-8304-79aa-97f2502e193f" // its one domain, "test"
)

func connect(t *testing.T) *virt.Virt {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	v, err := virt.Connect(ctx, testURI, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

func TestDriver(t *testing.T) {
	v, ctx := connect(t), t.Context()
	if ver, err := v.Version(ctx); err != nil || !strings.HasPrefix(ver.Hypervisor, "TEST ") || len(strings.Split(ver.Libvirt, ".")) != 3 {
		t.Errorf("%+v, %v", ver, err)
	}
	list, err := v.List(ctx)
	if err != nil || len(list) != 1 || list[0] != (virt.Domain{UUID: testUUID, Name: "test", State: "running", Persistent: true}) {
		t.Fatalf("%+v, %v", list, err)
	}
	w := v.Watch()
	if events, gap, err := w.Next(ctx); err != nil || !gap || len(events) != 0 {
		t.Errorf("first news: %v, gap %v, %v", events, gap, err)
	}
	if err := v.Destroy(ctx, testUUID); err != nil {
		t.Fatal(err)
	}
	if events, gap, err := w.Next(ctx); err != nil || gap || len(events) != 1 || events[0] != (virt.Event{UUID: testUUID, Name: "test", Kind: "stopped", Detail: 1}) {
		t.Errorf("%+v, gap %v, %v", events, gap, err)
	}
	if _, err := v.LiveXML(ctx, testUUID); !errors.Is(err, virt.ErrState) {
		t.Errorf("live XML of what does not run: %v", err)
	}
	for _, unknown := range []string{"00000000-0000-0000-0000-000000000000", "", "../x", "not a uuid\n"} {
		if _, err := v.State(ctx, unknown); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %q", unknown, err)
		}
	}
	if _, err := v.State(ctx, "00000000-0000-0000-0000-000000000000"); !errors.Is(err, virt.ErrNoDomain) {
		t.Errorf("unknown domain: %v", err)
	}
	w.Close()
	if _, _, err := w.Next(ctx); !errors.Is(err, virt.ErrWatchEnded) {
		t.Errorf("closed watch: %v", err)
	}
}

func TestClosed(t *testing.T) {
	v := connect(t)
	w := v.Watch()
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := v.List(t.Context()); !errors.Is(err, virt.ErrUnreachable) {
		t.Errorf("list after close: %v", err)
	}
	if _, _, err := w.Next(t.Context()); err != nil { // the gap at its start is still to be read
		t.Error(err)
	}
	if _, _, err := w.Next(t.Context()); !errors.Is(err, virt.ErrWatchEnded) {
		t.Errorf("watch after close: %v", err)
	}
}

// TestLostAtOnce: connections that are lost before those who wait for them have looked.
func TestLostAtOnce(t *testing.T) {
	v := connect(t)
	w := v.Watch()
	defer w.Close()
	end := make(chan struct{})
	var losing sync.WaitGroup
	losing.Go(func() {
		for {
			select {
			case <-end:
				return
			default:
				v.Lose()
			}
		}
	})
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			for range 10 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				if _, err := v.Version(ctx); err != nil && !errors.Is(err, virt.ErrUnreachable) && ctx.Err() == nil {
					t.Error(err)
				}
				cancel()
			}
		})
	}
	asking.Wait()
	close(end)
	losing.Wait()
	if _, err := v.Version(t.Context()); err != nil {
		t.Errorf("after the losses: %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	begin := time.Now()
	_, err := virt.Connect(t.Context(), "qemu+unix:///system?socket=/nonexistent/socket", nil)
	if !errors.Is(err, virt.ErrUnreachable) || time.Since(begin) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	v := connect(t)
	if _, err := v.List(ctx); err == nil {
		t.Error("a call with an ended context succeeded")
	} else if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
