// Command lab builds trusted hosts on one machine, in namespaces, to try Troth on and to play with; see package lab. It
// needs root, touches nothing but its directory and the cache, and leaves nothing.
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
	"troth/test/lab/txt"
)

const usage = `usage: lab [-dir DIR] COMMAND

  up [-n 2] [-until STAGE]     build hosts and a verifier; returns when they are ready
     [-bin DIR] [-cache DIR]   programs (default: built), guest kernel (default: build/lab-cache)
     [-foreground]             stay, and end the lab on ^C
                               STAGE: namespaces, libvirt, verifying, provisioned, ready
  status                       the nodes and what runs in them
  exec NODE -- COMMAND …       run a command in host1, host2, …, verifier or outside
  txt-boot HOST                a dynamic launch, with -launcher tboot-legacy|tboot-da|slaunch
                               -kernel TEXT -cmdline TEXT: what is measured; prints PCR 17-19 as computed from the script
  relaunch HOST                the same on a host that runs
  s3 HOST, reset HOST          suspend and resume, or restart, the TPM: no dynamic launch is left
  start|stop|kill HOST SERVICE hostd, libvirtd (start, stop, kill), swtpm (kill); verifier verifierd
  down                         end the lab and remove its directory

DIR is $TROTH_LAB_DIR or /tmp/troth-lab.
`

func main() {
	dir := os.Getenv("TROTH_LAB_DIR")
	if dir == "" {
		dir = filepath.Join(os.TempDir(), "troth-lab")
	}
	flag.StringVar(&dir, "dir", dir, "")
	flag.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, dir, flag.Arg(0), flag.Args()[1:])
	stop()
	switch {
	case errors.Is(err, errUsage):
		flag.Usage()
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage")

func run(ctx context.Context, dir, command string, args []string) error {
	switch command {
	case "up":
		return up(ctx, dir, args)
	case "down":
		return lab.Down(ctx, dir)
	}
	l, err := lab.Attach(dir)
	if err != nil {
		return err
	}
	if command == "status" {
		return status(ctx, l)
	}
	if len(args) == 0 {
		return errUsage
	}
	if command == "exec" {
		return enter(ctx, l, args)
	}
	if (command == "start" || command == "stop" || command == "kill") && len(args) == 2 {
		return service(ctx, l, command, args[0], args[1])
	}
	h, err := l.HostNamed(args[0])
	if err != nil {
		return err
	}
	switch command {
	case "txt-boot", "relaunch":
		return launch(h, args[1:])
	case "s3":
		return h.S3()
	case "reset":
		return h.Reset()
	default:
		return errUsage
	}
}

// enter becomes a command in a node.
func enter(ctx context.Context, l *lab.Lab, args []string) error {
	n, err := l.Node(args[0])
	if err != nil {
		return err
	}
	argv := args[1:]
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	if len(argv) == 0 {
		return errUsage
	}
	cmd := n.Command(ctx, argv...)
	return syscall.Exec(cmd.Path, cmd.Args, cmd.Env)
}

func status(ctx context.Context, l *lab.Lab) error {
	fmt.Printf("directory %s\nprograms  %s\n", l.Dir(), l.Binaries())
	for _, n := range l.Nodes() {
		fmt.Printf("%-9s %-11s process %d\n", n.Name, n.Address, n.PID())
		for _, name := range []string{"swtpm", "libvirtd", "hostd", "verifierd"} {
			s, err := n.Service(ctx, name)
			switch {
			case err != nil:
				return err
			case s.Running:
				fmt.Printf("  %-9s running\n", name)
			case s.PID != 0:
				fmt.Printf("  %-9s ended with status %d; see %s\n", name, s.Status, n.Log(name))
			}
		}
	}
	return nil
}

func launch(h *lab.Host, args []string) error {
	f := flag.NewFlagSet("txt-boot", flag.ContinueOnError)
	script := h.Script()
	launcher := f.String("launcher", string(script.Launcher), "")
	kernel := f.String("kernel", string(script.Kernel), "")
	f.StringVar(&script.CommandLine, "cmdline", script.CommandLine, "")
	if err := f.Parse(args); err != nil {
		return errUsage
	}
	script.Launcher, script.Kernel = txt.Launcher(*launcher), []byte(*kernel)
	values, err := h.TXTBoot(script)
	if err != nil {
		return err
	}
	for i := 17; i <= 19; i++ {
		fmt.Printf("%d %x\n", i, values[i])
	}
	return nil
}

func service(ctx context.Context, l *lab.Lab, verb, node, name string) error {
	if node == "verifier" && name == "verifierd" {
		do := map[string]func(context.Context) error{"start": l.Verifier.Start, "stop": l.Verifier.Stop, "kill": l.Verifier.Kill}
		return do[verb](ctx)
	}
	h, err := l.HostNamed(node)
	if err != nil {
		return err
	}
	do := map[string]func(context.Context) error{
		"start hostd": h.StartHostd, "stop hostd": h.StopHostd, "kill hostd": h.KillHostd,
		"start libvirtd": h.StartLibvirtd, "stop libvirtd": h.StopLibvirtd, "kill libvirtd": h.KillLibvirtd,
		"start swtpm": h.StartTPM, "kill swtpm": h.KillTPM,
	}[verb+" "+name]
	if do == nil {
		return errUsage
	}
	return do(ctx)
}
