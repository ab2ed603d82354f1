// Command demo tells Troth's story on real parts: two hosts with a real dynamic launch on swtpm, real libvirtd and QEMU, a
// verifier, an operator, a tenant and an engine. It starts one proven VM through hostd and one by plain libvirt, then tries to
// cheat in every way that the story knows, and undoes each, so that honest work goes on without a restart.
//
// Each step says who asked what, what was answered and why. The command ends 0 only if every expectation held, and leaves in
// BUILD/demo what a tenant would hold: trust.json, token, nonce.key and proof.json.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"troth/test/lab"
	"troth/test/standstill"
)

func main() {
	build := flag.String("build", "build", "directory with the programs; the demo leaves its files in DIR/demo")
	only := flag.String("only", "", "tell the main job and this cheat alone")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, *build, *only)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}

// run builds the lab, tells the story, and removes the lab whatever happened.
func run(ctx context.Context, build, only string) (err error) {
	build, err = filepath.Abs(build)
	if err != nil {
		return err
	}
	files := filepath.Join(build, "demo")
	if err := os.RemoveAll(files); err != nil {
		return fmt.Errorf("cannot clear the last demo: %w", err)
	}
	s := newStory(os.Stdout, files)
	s.chapter("Two hosts, a verifier, and a network between them")
	if err := standstill.Watch(); err != nil {
		return err
	}
	l, err := lab.New(ctx, lab.Options{
		Hosts: 2, Binaries: build, Cache: filepath.Join(build, "lab-cache"), Until: lab.Verifying, Log: s,
	})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			// What the daemons said is worth more than a clean directory.
			fmt.Fprintf(os.Stderr, "demo: the lab's logs stay in %s/log; remove %s when you have read them\n", l.Dir(), l.Dir())
			err = errors.Join(err, l.Keep())
			return
		}
		err = l.Close()
	}()
	if err := s.people(l); err != nil {
		return err
	}
	if err := s.mainJob(ctx); err != nil {
		return err
	}
	if err := s.cheats(ctx, only); err != nil {
		return err
	}
	return s.end()
}
