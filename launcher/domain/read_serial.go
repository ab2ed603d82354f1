package domain

import (
	"regexp"
	"strings"
)

func (r *reader) serials(n *node, c *Config) {
	serials, consoles := r.all(n, "serial"), r.all(n, "console")
	for i, s := range serials {
		c.Serials = append(c.Serials, r.serial(s, uint64(i)))
	}
	if len(consoles) > 1 {
		r.notAllowed(consoles[1], "", "only the console of the first serial port is known")
	}
	for _, k := range consoles {
		// A console of target serial is the first serial port under another name; without one libvirt makes it.
		s := r.serial(k, 0)
		switch {
		case len(serials) == 0 && r.request():
			c.Serials = []Serial{s}
		case len(serials) == 0 || !same(s, c.Serials[0]):
			r.notAllowed(k, "", "a console is the first serial port or none")
		}
	}
}

// same compares a console with its serial port; a console may be short.
func same(console, serial Serial) bool {
	return console.Type == serial.Type && (console.Type == "pty" && console.Log == "" || console == serial)
}

// serial reads a serial port or the console that mirrors it.
func (r *reader) serial(n *node, port uint64) Serial {
	console := n.name == "console"
	s := Serial{Type: r.attr(n, "type")}
	if s.Type == "" && !r.has(n, "type") {
		r.malformed(n, "@type", "the attribute is missing")
	}
	if s.Type != "file" && s.Type != "pty" {
		r.notAllowed(n, "@type", "%.32q: %s", s.Type, refusedWhy["serial-backend"])
		return s
	}
	src := r.one(n, "source")
	switch {
	case s.Type == "file" && src == nil:
		r.malformed(n, "source", "the element is missing")
	case s.Type == "file":
		r.need(src, "path")
		s.Path, s.Append = r.logPath(src, "path"), r.oneOf(src, "append", "on", "off")
	case r.running():
		r.attr(n, "tty")
		if p := r.attr(src, "path"); p != "" && !strings.HasPrefix(p, "/dev/pts/") {
			r.notAllowed(src, "@path", "%.64q is not the pseudo terminal that libvirt opens", p)
		}
	}
	if l := r.one(n, "log"); l != nil && s.Type == "pty" {
		r.need(l, "file")
		s.Log, s.Keep = r.logPath(l, "file"), r.oneOf(l, "append", "on", "off")
	}
	s.Port = r.serialTarget(n, port, console)
	r.alias(n)
	return s
}

func (r *reader) serialTarget(n *node, port uint64, console bool) uint64 {
	t := r.one(n, "target")
	if t == nil {
		if !r.request() {
			r.malformed(n, "target", "the element is missing")
		}
		return port
	}
	if console {
		if r.oneOf(t, "type", "serial"); r.has(t, "port") {
			return r.number(t, "port")
		}
		return port
	}
	r.oneOf(t, "type", "isa-serial")
	if m := r.one(t, "model"); m != nil {
		r.needOf(m, "name", "isa-serial")
	}
	if r.has(t, "port") {
		port = r.number(t, "port")
	}
	if port > 3 {
		r.malformed(t, "@port", "there are four ISA serial ports")
	}
	return port
}

// logPath reads a file that QEMU writes as the guest pleases: a *.log, outside the places that the host itself reads.
func (r *reader) logPath(n *node, name string) string {
	p := r.pathAttr(n, name)
	if p != "" && (!strings.HasSuffix(p, ".log") || below(p, "/etc", "/usr", "/boot", "/dev", "/bin", "/sbin", "/lib", "/lib64")) {
		r.notAllowed(n, "@"+name, "%.256q: what a serial port writes goes to a *.log outside the system's own directories", p)
	}
	return p
}

// guestChannel is the virtio-serial port of hostd, and guestPort its number: the last of a controller, so that those
// of the request keep theirs.
const (
	guestChannel = "troth.guest.0"
	guestPort    = "30"
)

var channelName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

func (r *reader) channel(n *node, c *Config) {
	ch := Channel{Type: r.needOf(n, "type", "unix")}
	t := r.must(n, "target")
	r.needOf(t, "type", "virtio")
	if ch.Name = r.need(t, "name"); !channelName.MatchString(ch.Name) {
		r.malformed(t, "@name", "%.64q is no name of a channel", ch.Name)
	}
	if r.running() {
		r.oneOf(t, "state", "connected", "disconnected")
	}
	src, p := r.one(n, "source"), ""
	if src != nil {
		r.needOf(src, "mode", "bind")
		p = r.pathAttr(src, "path")
	}
	ch.Address = r.placed(n, "virtio-serial")
	switch {
	case strings.HasPrefix(ch.Name, "troth."):
		ours := Address{Type: "virtio-serial", Port: guestPort}
		if r.request() || ch.Name != guestChannel || p == "" || ch.Address != ours || c.Added.ChannelPath != "" {
			r.notAllowed(n, "", "%s", refusedWhy["troth.guest.0"])
		}
		c.Added.ChannelPath = p
		return
	case p != "" && !(r.running() && below(p, "/var/lib/libvirt/qemu/channel", "/run/libvirt/qemu/channel")):
		r.notAllowed(src, "@path", "%.256q: the socket's path is libvirt's to choose", p)
	}
	c.Channels = append(c.Channels, ch)
}
