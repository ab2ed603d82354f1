package reaper

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
)

// Ask has the reaper at that socket do it. emulator.ErrNotIt: the process is gone, or is not what was thought.
func Ask(ctx context.Context, socket string, r Request) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("cannot reach the reaper: %w", err)
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return fmt.Errorf("cannot ask the reaper: %w", err)
		}
	}
	if _, err := io.WriteString(c, r.encode()); err != nil {
		return fmt.Errorf("cannot ask the reaper: %w", err)
	}
	line, err := bufio.NewReader(io.LimitReader(c, maxLine)).ReadString('\n')
	if err != nil {
		return fmt.Errorf("cannot read the reaper's answer: %w", err)
	}
	return readAnswer(line)
}
