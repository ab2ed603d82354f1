package stories

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"troth/test/cast"
	"troth/test/lab"
	"troth/test/standstill"
)

// exits runs a person's command until it ends with the status wanted.
func (s *stage) exits(ctx context.Context, ts *testscript.TestScript, neg bool, args []string, patience time.Duration) {
	want(ts, neg, args, 3)
	status, err := strconv.Atoi(args[0])
	ts.Check(err)
	s.repeat(ctx, ts, args[1:], patience, func(exit int) bool { return exit == status })
}

// says runs a person's command until what it prints matches.
func (s *stage) says(ctx context.Context, ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 3)
	pattern, err := regexp.Compile(args[0])
	ts.Check(err)
	s.repeat(ctx, ts, args[1:], time.Minute, func(int) bool { return pattern.MatchString(s.printed) })
}

func (s *stage) repeat(ctx context.Context, ts *testscript.TestScript, args []string, patience time.Duration, good func(exit int) bool) {
	for begun := time.Now(); ; {
		exit := s.run(ctx, ts, lab.Role(args[0]), args[1:])
		if good(exit) {
			return
		}
		if standstill.Since(begun) >= patience {
			ts.Fatalf("%v: exit %d", args, exit)
		}
		select {
		case <-ctx.Done():
			ts.Check(ctx.Err())
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// on runs a command on a host.
func (s *stage) on(ctx context.Context, ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("on HOST COMMAND...")
	}
	var out, errs bytes.Buffer
	var err error
	unlessStood(func() bool {
		out.Reset()
		errs.Reset()
		cmd := s.host(ts, args[0]).Command(ctx, args[1:]...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = "/", &out, &errs
		err = cmd.Run()
		return err == nil
	})
	fmt.Fprint(ts.Stdout(), out.String())
	fmt.Fprint(ts.Stderr(), errs.String())
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		ts.Check(err)
	}
	if (err != nil) != neg {
		ts.Fatalf("%v: %v", args, err)
	}
}

// guest writes a domain's XML.
func (s *stage) guest(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 3)
	d := lab.Domain{Name: args[1], UUID: args[2]}
	for _, a := range args[3:] {
		key, value, _ := strings.Cut(a, "=")
		switch key {
		case "kernel":
			d.Kernel = value
		case "initrd":
			d.Initrd = value
		case "cmdline":
			d.CommandLine = value
		case "extra":
			d.Extra = value
		case "configured":
			d.Configured = value
		case "metadata":
			d.MetadataText = value
		case "carries": // a token, in the mark
			d.MetadataText = `<troth:launch xmlns:troth="urn:troth:launch:v1" token="` + strings.TrimSpace(ts.ReadFile(value)) + `"/>`
		default:
			ts.Fatalf("guest: what is %q?", key)
		}
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(s.lab.Guest.XML(d)), 0o644))
}

// token lets the tenant make a token that pins the lab's guest.
func (s *stage) token(ctx context.Context, ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 1)
	all := cast.NewToken(s.lab.Guest, lab.Domain{}, s.profile, args[0]+".key", args[0]+".token", args[1:]...)
	if exit := s.run(ctx, ts, lab.RoleTenant, all); exit != 0 {
		ts.Fatalf("token: exit %d", exit)
	}
}

// launched makes token and XML of a name, launches it and expects a proof.
func (s *stage) launched(ctx context.Context, ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2)
	s.guest(ts, false, []string{args[0] + ".xml", args[0], args[1]})
	s.token(ctx, ts, false, []string{args[0]})
	if exit := s.run(ctx, ts, lab.RoleEngine, []string{"domain", "launch", "--token", args[0] + ".token", "--domain", args[0] + ".xml", "--proof-out", args[0] + ".proof"}); exit != 0 {
		ts.Fatalf("launched: exit %d", exit)
	}
}

// tpm does something to a host's TPM.
func (s *stage) tpm(ctx context.Context, ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2)
	h := s.host(ts, args[0])
	var err error
	switch args[1] {
	case "boot":
		_, err = h.TXTBoot()
	case "relaunch":
		_, err = h.Relaunch()
	case "other":
		other := h.Script()
		other.Kernel = bytes.ToUpper(append([]byte("another "), other.Kernel...))
		_, err = h.Relaunch(other)
	case "reset":
		err = h.Reset()
	case "s3":
		err = h.S3()
	case "kill":
		err = h.KillTPM(ctx)
	case "start":
		ts.Check(s.unmask())
		err = h.StartTPM(ctx)
	case "hold", "go":
		err = h.PauseTPM(ctx, args[1] == "hold")
	case "replace":
		err = h.ReplaceTPM(ctx)
	case "hangup", "babble":
		if s.masks == nil {
			ts.Check(h.KillTPM(ctx))
		}
		ts.Check(s.unmask())
		err = s.mask(args[1], func() (net.Listener, error) { return listenAt(h.TPMSocket()) })
	default:
		ts.Fatalf("tpm: what is %q?", args[1])
	}
	ts.Check(err)
}

// daemon starts, stops, kills or holds a daemon of a host.
func (s *stage) daemon(ctx context.Context, ts *testscript.TestScript, neg bool, which string, args []string) {
	want(ts, neg, args, 2)
	h := s.host(ts, args[0])
	do := map[string]func(context.Context) error{
		"hostd start": h.StartHostd, "hostd stop": h.StopHostd, "hostd kill": h.KillHostd,
		"hostd hold":     func(ctx context.Context) error { return h.PauseHostd(ctx, true) },
		"hostd go":       func(ctx context.Context) error { return h.PauseHostd(ctx, false) },
		"libvirtd start": h.StartLibvirtd, "libvirtd stop": h.StopLibvirtd, "libvirtd kill": h.KillLibvirtd,
		"libvirtd reload": h.ReloadLibvirtd,
	}[which+" "+args[1]]
	if do == nil {
		ts.Fatalf("%s: what is %q?", which, args[1])
	}
	ts.Check(do(ctx))
}

// verifier holds the verifier where it is, or stops and starts it.
func (s *stage) verifier(ctx context.Context, ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 1)
	v := s.lab.Verifier
	masked := func(how string) func(context.Context) error {
		return func(ctx context.Context) error {
			if err := v.Stop(ctx); err != nil {
				return err
			}
			return s.mask(how, func() (net.Listener, error) { return v.Listen(":8443") })
		}
	}
	do := map[string]func(context.Context) error{
		"stop": v.Stop,
		"start": func(ctx context.Context) error {
			if err := s.unmask(); err != nil {
				return err
			}
			return v.Start(ctx)
		},
		"hangup": masked("hangup"), "babble": masked("babble"),
		"hold":   func(ctx context.Context) error { return v.Pause(ctx, true) },
		"go":     func(ctx context.Context) error { return v.Pause(ctx, false) },
		"rotate": v.Rotate, "revoke": v.Revoke,
		"cut":  func(context.Context) error { return v.Cut(true) },
		"join": func(context.Context) error { return v.Cut(false) },
	}[args[0]]
	if do == nil {
		ts.Fatalf("verifier: what is %q?", args[0])
	}
	ts.Check(do(ctx))
}
