package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"troth/test/lab"
)

// readyLine is the last thing that the lab's owner tells the program that started it.
const readyLine = "ready"

var stages = map[string]lab.Stage{
	"ready": lab.Ready, "namespaces": lab.Namespaces, "libvirt": lab.Libvirt, "verifying": lab.Verifying, "provisioned": lab.Provisioned,
}

func up(ctx context.Context, dir string, args []string) error {
	f := flag.NewFlagSet("up", flag.ContinueOnError)
	o := lab.Options{Dir: dir}
	f.IntVar(&o.Hosts, "n", 1, "")
	f.StringVar(&o.Binaries, "bin", "", "")
	f.StringVar(&o.Cache, "cache", "", "")
	until := f.String("until", "ready", "")
	foreground := f.Bool("foreground", false, "")
	owner := f.Bool("owner", false, "") // for our own use: tell file 3, not the terminal
	if err := f.Parse(args); err != nil {
		return errUsage
	}
	stage, ok := stages[*until]
	if !ok || f.NArg() > 0 {
		return errUsage
	}
	o.Until = stage
	switch {
	case *owner:
		return own(ctx, o, os.NewFile(3, "starter"))
	case *foreground:
		return own(ctx, o, os.Stdout)
	default:
		return detach(ctx, dir, args)
	}
}

// own builds the lab and stays until it is told to end.
func own(ctx context.Context, o lab.Options, out *os.File) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	o.Log = &teller{out, cancel}
	l, err := lab.New(ctx, o)
	if err != nil {
		fmt.Fprintf(out, "lab: %v\n", err)
		return err
	}
	fmt.Fprintln(out, readyLine)
	if out != os.Stdout {
		out.Close()
	}
	<-ctx.Done()
	return l.Close()
}

// teller writes to the program that started us, and gives up with it.
type teller struct {
	to     io.Writer
	cancel context.CancelCauseFunc
}

func (t *teller) Write(b []byte) (int, error) {
	n, err := t.to.Write(b)
	if errors.Is(err, syscall.EPIPE) {
		t.cancel(errors.New("the program that started the lab has gone"))
	}
	return n, err
}

// detach starts the lab's owner in a session of its own and returns when the lab is ready.
func detach(ctx context.Context, dir string, args []string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", append([]string{"-dir", dir, "up", "-owner"}, args...)...)
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("cannot start the lab: %w", err)
	}
	stop := context.AfterFunc(ctx, func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			fmt.Fprintln(os.Stderr, "lab: cannot end the lab:", err)
		}
	})
	defer stop()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if lines.Text() == readyLine {
			fmt.Printf("ready in %s\n", dir)
			return cmd.Process.Release()
		}
		fmt.Println(strings.TrimSpace(lines.Text()))
	}
	return errors.Join(errors.New("the lab did not come up"), cmd.Wait())
}
