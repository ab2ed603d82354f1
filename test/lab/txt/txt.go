package txt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Commands of swtpm's control channel (swtpm_ioctls.h).
const (
	ctrlInit        = 2
	ctrlShutdown    = 3
	ctrlSetLocality = 5
	ctrlHashStart   = 6
	ctrlHashData    = 7
	ctrlHashEnd     = 8
)

// TPM command and structure constants (TPM 2.0 Part 2, 6).
const (
	ccStartup   = 0x144
	ccShutdown  = 0x145
	ccExtend    = 0x182
	ccReadClock = 0x181
	suClear     = 0
	suState     = 1
	maxData     = 4096
	timeout     = 30 * time.Second
)

// Boot does a dynamic launch of the script and writes its event log to LogFile. On a TPM that had one before it is a
// second launch: PCR 17 to 22 start again and restartCount moves on.
func (t *TPM) Boot(s Script) error {
	steps, err := s.steps()
	if err != nil {
		return err
	}
	if err := t.hashSequence(s.SINIT); err != nil {
		return fmt.Errorf("cannot launch: %w", err)
	}
	for _, m := range steps {
		if m.locality == 0 {
			continue
		}
		if err := t.Extend(m.locality, m.index, m.digest); err != nil {
			return fmt.Errorf("cannot launch: %s: %w", m.text, err)
		}
	}
	log, err := s.Log()
	if err != nil {
		return err
	}
	if err := os.WriteFile(t.LogFile(), log, 0o644); err != nil {
		return fmt.Errorf("cannot launch: %w", err)
	}
	return nil
}

// Relaunch is Boot on a host that runs: the name says what a test means.
func (t *TPM) Relaunch(s Script) error { return t.Boot(s) }

// HashSequence does the processor's part of a launch alone: PCR 18 to 22 stay zero.
func (t *TPM) HashSequence(sinit []byte) error {
	if err := t.hashSequence(sinit); err != nil {
		return fmt.Errorf("cannot launch: %w", err)
	}
	return nil
}

// S3 suspends the host to memory and resumes it: PCR 17 to 22 become all ones, restartCount moves on.
func (t *TPM) S3() error { return t.restart(suState) }

// Reset restarts the host: PCR 17 to 22 become all ones, resetCount moves on, restartCount is zero.
func (t *TPM) Reset() error { return t.restart(suClear) }

// Shutdown tells the TPM that power goes (TPM2_Shutdown): it writes down what it keeps.
func (t *TPM) Shutdown() error {
	if err := t.send(ccShutdown, false, binary.BigEndian.AppendUint16(nil, suClear)); err != nil {
		return fmt.Errorf("cannot shut TPM down: %w", err)
	}
	return nil
}

func (t *TPM) restart(kind uint16) error {
	parameter := binary.BigEndian.AppendUint16(nil, kind)
	err := t.send(ccShutdown, false, parameter)
	if err == nil {
		_, err = t.control(ctrlInit, make([]byte, 4))
	}
	if err == nil {
		err = t.send(ccStartup, false, parameter)
	}
	if err != nil {
		return fmt.Errorf("cannot restart TPM: %w", err)
	}
	return nil
}

// Extend extends a PCR of the SHA-256 bank at a locality and goes back to locality 0.
func (t *TPM) Extend(locality byte, index int, digest [32]byte) error {
	if _, err := t.control(ctrlSetLocality, []byte{locality}); err != nil {
		return fmt.Errorf("cannot extend PCR %d: %w", index, err)
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(index))
	b = append(b, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0) // one session: TPM_RS_PW, no nonce, no attributes, empty password
	b = append(b, 0, 0, 0, 1, 0, 0x0B)                      // one digest, SHA-256
	err := t.send(ccExtend, true, append(b, digest[:]...))
	_, back := t.control(ctrlSetLocality, []byte{0})
	if err := errors.Join(err, back); err != nil {
		return fmt.Errorf("cannot extend PCR %d at locality %d: %w", index, locality, err)
	}
	return nil
}

func (t *TPM) hashSequence(data []byte) error {
	if _, err := t.control(ctrlHashStart, nil); err != nil {
		return err
	}
	for len(data) > 0 {
		part := data[:min(len(data), maxData)]
		if _, err := t.control(ctrlHashData, append(binary.BigEndian.AppendUint32(nil, uint32(len(part))), part...)); err != nil {
			return err
		}
		data = data[len(part):]
	}
	_, err := t.control(ctrlHashEnd, nil)
	return err
}

// send sends one command on a connection of its own, as the product does, so that both may use one TPM by turns.
func (t *TPM) send(cc uint32, sessions bool, body []byte) error {
	tag := uint16(0x8001)
	if sessions {
		tag = 0x8002
	}
	b := binary.BigEndian.AppendUint16(nil, tag)
	b = binary.BigEndian.AppendUint32(b, uint32(10+len(body)))
	b = append(binary.BigEndian.AppendUint32(b, cc), body...)
	response, err := exchange(t.Socket(), b, 10)
	if err != nil {
		return err
	}
	if rc := binary.BigEndian.Uint32(response[6:]); rc != 0 {
		return fmt.Errorf("command %#x: TPM answers %#x", cc, rc)
	}
	return nil
}

// control sends one control command; every one that is used here answers a result code first.
func (t *TPM) control(command uint32, payload []byte) ([]byte, error) {
	response, err := exchange(t.Control(), append(binary.BigEndian.AppendUint32(nil, command), payload...), 4)
	if err != nil {
		return nil, fmt.Errorf("control command %d: %w", command, err)
	}
	if rc := binary.BigEndian.Uint32(response); rc != 0 {
		return nil, fmt.Errorf("control command %d: swtpm answers %#x", command, rc)
	}
	return response, nil
}

// dial connects to swtpm. It takes one connection at a time and lets one more wait; the kernel answers EAGAIN to others
// (unix(7)), which go in as soon as it has come round.
func dial(path string) (net.Conn, error) {
	for deadline := time.Now().Add(timeout); ; time.Sleep(time.Millisecond) {
		c, err := net.DialTimeout("unix", path, timeout)
		if err == nil || !errors.Is(err, unix.EAGAIN) || time.Now().After(deadline) {
			return c, err
		}
	}
}

// exchange writes a request and reads at least n bytes of answer.
func exchange(path string, request []byte, n int) ([]byte, error) {
	c, err := dial(path)
	if err != nil {
		return nil, err
	}
	response := make([]byte, maxData)
	err = c.SetDeadline(time.Now().Add(timeout))
	if err == nil {
		_, err = c.Write(request)
	}
	if err == nil {
		n, err = io.ReadAtLeast(c, response, n)
	}
	if err := errors.Join(err, c.Close()); err != nil {
		return nil, err
	}
	return response[:n], nil
}
