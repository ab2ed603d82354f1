package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"troth/proof"
)

func (a *app) guestCommand() *cobra.Command {
	return group("guest", "What runs inside a trusted guest", a.guestRespond())
}

// guestOptions are the flags of guest respond; root is the file system that is
// searched, "/" but in tests.
type guestOptions struct {
	root, credentials, secret, port string
	wait                            time.Duration
}

func (a *app) guestRespond() *cobra.Command {
	o := guestOptions{root: "/", credentials: os.Getenv("CREDENTIALS_DIRECTORY")}
	c := &cobra.Command{
		Use:   "respond",
		Short: "Answer challenges from inside the guest, for ever",
		Long: `Run in the guest: read the guest's secret, open the virtio-serial port troth.guest.0 and answer
every challenge on it until the end. Nothing else is needed: no network, no /etc, no udev, so the
one static file works in an initrd.

The secret is $CREDENTIALS_DIRECTORY/troth.guest (a systemd service with
LoadCredential=troth.guest), or QEMU's fw_cfg entry
/sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials/troth.guest/raw, which needs sysfs and
the module qemu_fw_cfg. The port is /dev/virtio-ports/troth.guest.0, or, without udev, the port of
that name in /sys/class/virtio-ports, which needs sysfs, devtmpfs and the module virtio_console.
Both are waited for.`,
		Example: "  troth guest respond\n  troth guest respond --wait 2m",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return a.respond(c.Context(), o) },
	}
	f := c.Flags()
	f.StringVar(&o.secret, "secret", "", "file with the guest's secret (default: found as above)")
	f.StringVar(&o.port, "port", "", "device of the port (default: found as above)")
	f.DurationVar(&o.wait, "wait", time.Minute, "how long to wait for secret and port to appear")
	return c
}

// respond ends only with its context or when the secret cannot be found: a port
// that breaks (the module was reloaded) is opened again.
func (a *app) respond(ctx context.Context, o guestOptions) error {
	credential, err := until(ctx, o.wait, func() (*proof.GuestCredential, error) { return readGuestCredential(o) })
	if err != nil {
		return undecidedf("%w", err)
	}
	say := func(format string, args ...any) { a.note("troth guest: "+format, args...) }
	for {
		err := a.respondOnce(ctx, o, credential, say)
		if ctx.Err() != nil {
			return nil // told to stop: that is how this command ends well
		}
		say("%s", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

func (a *app) respondOnce(ctx context.Context, o guestOptions, credential *proof.GuestCredential, say func(string, ...any)) error {
	port, err := until(ctx, o.wait, func() (*os.File, error) { return openGuestPort(o) })
	if err != nil {
		return err
	}
	defer port.Close()
	// A read that waits for the host ends when the port is closed under it.
	stop := context.AfterFunc(ctx, func() {
		if err := port.Close(); err != nil {
			say("cannot close the port: %s", err)
		}
	})
	defer stop()
	say("answering on %s", port.Name())
	return serveGuest(ctx, port, credential, say)
}

// readGuestCredential reads the first credential that is there.
func readGuestCredential(o guestOptions) (*proof.GuestCredential, error) {
	names := []string{o.secret}
	if o.secret == "" {
		names = guestCredentials(o.root, o.credentials)
	}
	var errs []error
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c, err := proof.ParseGuestCredential(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return c, nil
	}
	return nil, fmt.Errorf("cannot find the guest's secret: %w", errors.Join(errs...))
}

func openGuestPort(o guestOptions) (*os.File, error) {
	name := o.port
	if name == "" {
		var err error
		if name, err = findGuestPort(o.root); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the port: %w", err)
	}
	return f, nil
}
