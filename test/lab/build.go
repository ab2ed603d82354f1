package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// moduleRoot finds the directory of the module from the working directory upwards.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(data), "module troth\n") {
			return dir, nil
		}
		if dir == "/" {
			return "", errors.New("cannot find the module troth above the working directory: name a cache and the programs")
		}
	}
}

// DefaultCache is build/lab-cache of the module.
func DefaultCache() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "build/lab-cache"), nil
}

// Binaries is the directory with the programs that the lab runs.
func (l *Lab) Binaries() string { return l.options.Binaries }

// buildPrograms builds the programs into the cache. What is up to date is not built again.
func (l *Lab) buildPrograms(ctx context.Context) error {
	l.say("building the programs")
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	dir := filepath.Join(l.options.Cache, "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot build: %w", err)
	}
	for cgo, packages := range map[string][]string{
		"CGO_ENABLED=0": {"./cmd/troth", "./cmd/troth-hook", "./cmd/troth-registered", "./cmd/troth-verifierd"},
		"CGO_ENABLED=1": {"./cmd/troth-hostd"},
	} {
		argv := append([]string{"go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir + "/"}, packages...)
		if _, err := l.tool(ctx, root, []string{cgo}, argv...); err != nil {
			return fmt.Errorf("cannot build the programs: %w", err)
		}
	}
	l.options.Binaries = dir
	return nil
}

// tool runs a program of the machine for the lab itself, on the machine's network, and returns its output. It runs in a
// PID namespace, so that all that it starts ends with the lab.
func (l *Lab) tool(ctx context.Context, dir string, env []string, argv ...string) (string, error) {
	if l.tools == nil {
		n := &Node{Name: "tools", dir: filepath.Join(l.dir, "tools"), log: filepath.Join(l.dir, "log"), socket: filepath.Join(l.dir, "tools/init.sock")}
		if err := os.MkdirAll(n.dir, 0o755); err != nil {
			return "", fmt.Errorf("cannot make the lab's directory: %w", err)
		}
		if err := l.spawner.spawn(ctx, l.dir, n, initConfig{Name: n.Name, Socket: n.socket, Online: true}); err != nil {
			return "", err
		}
		l.tools = n
	}
	var stderr strings.Builder
	cmd := l.tools.Command(ctx, argv...)
	cmd.Dir, cmd.Stderr = dir, &stderr
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
