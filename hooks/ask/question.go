// Package ask is what the hook and hostd say to each other: one question of fixed length with the domain's XML behind
// it, one answer of fixed length, over a unix socket; and the registry, the file by which a hook knows what is trusted when hostd is away.
//
// It promises: no message and no file has two encodings, every read is bounded in bytes and in time, and whatever
// is not an answer is an error, never a permit.
// It trusts: the kernel's peer credentials, and that only hostd's user writes the socket's and the registry's
// directories. It imports the standard library alone, since libvirt runs the hook as root on every start.
//
//	libvirt ──argv, XML──▶ hook ──Question, XML──▶ hook.sock ──▶ hostd
//	                        │  ◀──'T'………… Answer ───────────────┘
//	                        └─reads── gate/registry ◀──Write── hostd
package ask

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Op is the moment at which libvirt runs the hook (libvirt's "Hooks for specific system management", qemu).
type Op uint8

// The operations of libvirt's qemu driver; OpUnknown is every other one.
const (
	OpPrepare   Op = 1
	OpStart     Op = 2
	OpStarted   Op = 3
	OpStopped   Op = 4
	OpRelease   Op = 5
	OpMigrate   Op = 6
	OpRestore   Op = 7
	OpReconnect Op = 8
	OpUnknown   Op = 255
)

var opNames = map[Op]string{
	OpPrepare: "prepare", OpStart: "start", OpStarted: "started", OpStopped: "stopped",
	OpRelease: "release", OpMigrate: "migrate", OpRestore: "restore", OpReconnect: "reconnect",
}

// ParseOp reads libvirt's name of an operation; a name that it does not know is OpUnknown.
func ParseOp(s string) Op {
	for op, name := range opNames {
		if s == name {
			return op
		}
	}
	return OpUnknown
}

func (o Op) String() string {
	if name, ok := opNames[o]; ok {
		return name
	}
	return "unknown"
}

// SubOp is the second word of an operation.
type SubOp uint8

// The words libvirt uses.
const (
	SubBegin   SubOp = 1
	SubEnd     SubOp = 2
	SubUnknown SubOp = 255
)

// ParseSubOp reads libvirt's word; one that it does not know is SubUnknown.
func ParseSubOp(s string) SubOp {
	switch s {
	case "begin":
		return SubBegin
	case "end":
		return SubEnd
	}
	return SubUnknown
}

func (s SubOp) String() string {
	switch s {
	case SubBegin:
		return "begin"
	case SubEnd:
		return "end"
	case SubUnknown:
		return "unknown"
	}
	return "unknown"
}

// Flags say why the hook holds a domain for trusted.
type Flags uint8

// Reasons; a domain may have several.
const (
	Marked     Flags = 1 << iota // its XML carries the mark
	Registered                   // its UUID is in the registry
	All                          // the registry says that every domain counts
	Damaged                      // the registry cannot be read, so every domain counts
	OnVolume                     // it names a registered volume
	allFlags   = Marked | Registered | All | Damaged | OnVolume
)

// Has reports whether every reason in g holds.
func (f Flags) Has(g Flags) bool { return f&g == g }

// QuestionSize is the length of an encoded Question.
const QuestionSize = 92

const questionMagic = "TRQ2"

// MaxXML bounds the XML behind a question, in bytes. What hostd can judge is no longer.
const MaxXML = 1 << 20

// Question is what the hook asks about one domain.
type Question struct {
	Op       Op
	SubOp    SubOp
	Flags    Flags
	UUID     [16]byte
	LaunchID [32]byte // the one-time id that only the live XML carries; zero without one
	XML      [32]byte // SHA-256 of every byte that libvirt wrote on the hook's standard input
	Size     uint32   // how many of these bytes follow the question: all, or none
}

// Carries says whether the XML follows a question about this operation: hostd then judges what it says, and needs no
// libvirt, which holds the domain's lock meanwhile.
func (o Op) Carries() bool {
	switch o {
	case OpPrepare, OpStart, OpMigrate, OpRestore:
		return true
	case OpStarted, OpStopped, OpRelease, OpReconnect, OpUnknown:
		return false
	}
	return false
}

// Told says that the hook only tells hostd of this operation and vetoes nothing: it waits for no answer.
func (o Op) Told() bool { return o == OpStopped || o == OpRelease || o == OpReconnect }

// Encode gives the question's only encoding:
// magic 4 ‖ op 1 ‖ subop 1 ‖ flags 1 ‖ zero 1 ‖ uuid 16 ‖ launch id 32 ‖ xml 32 ‖ size 4. All integers are big-endian.
func (q Question) Encode() [QuestionSize]byte {
	var b [QuestionSize]byte
	copy(b[:4], questionMagic)
	b[4], b[5], b[6] = byte(q.Op), byte(q.SubOp), byte(q.Flags)
	copy(b[8:24], q.UUID[:])
	copy(b[24:56], q.LaunchID[:])
	copy(b[56:88], q.XML[:])
	binary.BigEndian.PutUint32(b[88:], q.Size)
	return b
}

// ParseQuestion reads what Encode wrote and nothing else.
func ParseQuestion(b []byte) (Question, error) {
	if len(b) != QuestionSize {
		return Question{}, fmt.Errorf("cannot read question: %d bytes, want %d", len(b), QuestionSize)
	}
	if string(b[:4]) != questionMagic {
		return Question{}, errors.New("cannot read question: wrong magic")
	}
	q := Question{Op: Op(b[4]), SubOp: SubOp(b[5]), Flags: Flags(b[6])}
	if _, known := opNames[q.Op]; !known && q.Op != OpUnknown {
		return Question{}, fmt.Errorf("cannot read question: op %d", b[4])
	}
	if q.SubOp != SubBegin && q.SubOp != SubEnd && q.SubOp != SubUnknown {
		return Question{}, fmt.Errorf("cannot read question: subop %d", b[5])
	}
	if q.Flags&^allFlags != 0 {
		return Question{}, fmt.Errorf("cannot read question: flags %#x", b[6])
	}
	if b[7] != 0 {
		return Question{}, errors.New("cannot read question: padding is not zero")
	}
	copy(q.UUID[:], b[8:24])
	copy(q.LaunchID[:], b[24:56])
	copy(q.XML[:], b[56:88])
	if q.Size = binary.BigEndian.Uint32(b[88:]); q.Size > MaxXML || q.Size > 0 && !q.Op.Carries() {
		return Question{}, fmt.Errorf("cannot read question: %d bytes of XML", q.Size)
	}
	return q, nil
}
