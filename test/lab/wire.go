package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// receive reads one request and the files that came with it.
func receive(conn *net.UnixConn) (*request, []int, error) {
	buf, oob := make([]byte, maxRequest), make([]byte, 256)
	n, on, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, nil, err
	}
	if n == 0 {
		return nil, nil, io.EOF
	}
	var files []int
	if on > 0 {
		messages, err := syscall.ParseSocketControlMessage(oob[:on])
		if err != nil {
			return nil, nil, err
		}
		for _, m := range messages {
			fds, err := syscall.ParseUnixRights(&m)
			if err != nil {
				return nil, nil, err
			}
			files = append(files, fds...)
		}
		for _, fd := range files {
			syscall.CloseOnExec(fd)
		}
	}
	var r request
	if err := json.Unmarshal(buf[:n], &r); err != nil {
		closeAll(files)
		return nil, nil, err
	}
	return &r, files, nil
}

func closeAll(files []int) {
	for i, fd := range files {
		if fd >= 0 {
			if err := syscall.Close(fd); err != nil {
				fmt.Fprintf(os.Stderr, "cannot close file %d: %v\n", fd, err)
			}
			files[i] = -1
		}
	}
}

// hangUp closes what was only read from or has said all it had to: nothing that matters can fail any more, but it is told.
func hangUp(c io.Closer) {
	if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		fmt.Fprintln(os.Stderr, "cannot close:", err)
	}
}

// answer sends a reply. A client that has gone away is no fault of ours.
func answer(conn *net.UnixConn, r reply) {
	data, err := json.Marshal(r)
	if err != nil {
		panic(err) // a struct of numbers and text
	}
	if _, err := conn.Write(data); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, net.ErrClosed) {
		fmt.Fprintf(os.Stderr, "cannot answer: %v\n", err)
	}
}

// ask sends a request with files to process 1 and returns the connection, for further messages, and the first reply.
func ask(ctx context.Context, socket string, r request, files ...int) (*net.UnixConn, *reply, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", socket)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot reach the node: %w", err)
	}
	conn := c.(*net.UnixConn)
	data, err := json.Marshal(r)
	if err == nil && len(data) > maxRequest {
		err = errors.New("the command is too long")
	}
	if err == nil {
		var rights []byte
		if len(files) > 0 {
			rights = syscall.UnixRights(files...)
		}
		_, _, err = conn.WriteMsgUnix(data, rights, nil)
	}
	if err != nil {
		hangUp(conn)
		return nil, nil, fmt.Errorf("cannot ask the node: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { hangUp(conn) })
	defer stop()
	answer, err := await(conn)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		hangUp(conn)
		return nil, nil, err
	}
	return conn, answer, nil
}

// await reads one reply.
func await(conn *net.UnixConn) (*reply, error) {
	buf := make([]byte, maxRequest)
	n, err := conn.Read(buf)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return nil, fmt.Errorf("the node has gone: %w", err)
	}
	var r reply
	if err := json.Unmarshal(buf[:n], &r); err != nil {
		return nil, fmt.Errorf("cannot read the node's answer: %w", err)
	}
	if r.Error != "" {
		return nil, errors.New(r.Error)
	}
	return &r, nil
}
