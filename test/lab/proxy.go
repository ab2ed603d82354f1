package lab

import (
	"context"
	"encoding/json"
	"os"
	"os/signal"
	"syscall"
)

// runProxy stands in for a command that runs in a node: it hands its own standard files to process 1 there, passes
// signals on, and ends as the command ends. When it is killed, process 1 kills the command.
func runProxy(socket string, argv []string) (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT)
	dir, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	conn, _, err := ask(context.Background(), socket, request{Op: "run", Path: selfIn(argv[0]), Argv: argv, Env: os.Environ(), Dir: dir}, 0, 1, 2)
	if err != nil {
		return 0, err
	}
	defer hangUp(conn)
	go func() {
		for s := range signals {
			data, err := json.Marshal(request{Op: "signal", Signal: int(s.(syscall.Signal))})
			if err != nil {
				panic(err)
			}
			if _, err := conn.Write(data); err != nil {
				return // the command has ended
			}
		}
	}()
	end, err := await(conn)
	if err != nil {
		return 0, err
	}
	return end.Status, nil
}

// selfIn is the program of process 1 of a node, which is ours, for the faces of reexec.go; empty for all others.
func selfIn(name string) string {
	if name == tpmName {
		return "/proc/1/exe"
	}
	return ""
}
