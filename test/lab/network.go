package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Every lab has the same addresses: its network is its own.
const (
	bridgeName = "br0"
	portName   = "eth0"
	prefix     = "/24"
)

func hostAddress(i int) string { return fmt.Sprintf("10.77.0.%d", 10+i) }

const (
	outsideAddress  = "10.77.0.1"
	verifierAddress = "10.77.0.2"
)

// makeBridge makes the lab's bridge in the namespace of the node outside, and brings up its loopback.
func makeBridge(outside *Node) error {
	h, done, err := outside.netlink()
	if err != nil {
		return err
	}
	defer done()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
	if err := h.LinkAdd(bridge); err != nil {
		return fmt.Errorf("cannot make the bridge: %w", err)
	}
	if err := address(h, "lo", ""); err != nil {
		return err
	}
	return address(h, bridgeName, outside.Address)
}

// join connects a node to the bridge: a pair of veth, one end in each namespace. The pair goes with either namespace.
func join(outside, n *Node) error {
	peer, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.pid))
	if err != nil {
		return fmt.Errorf("cannot open the network namespace of %s: %w", n.Name, err)
	}
	defer peer.Close()
	h, done, err := outside.netlink()
	if err != nil {
		return err
	}
	defer done()
	bridge, err := h.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("cannot find the bridge: %w", err)
	}
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: n.Name, MasterIndex: bridge.Attrs().Index, Flags: net.FlagUp},
		PeerName:      portName,
		PeerNamespace: netlink.NsFd(int(peer.Fd())),
	}
	if err := h.LinkAdd(veth); err != nil {
		return fmt.Errorf("cannot connect %s: %w", n.Name, err)
	}
	if err := h.LinkSetUp(veth); err != nil {
		return fmt.Errorf("cannot connect %s: %w", n.Name, err)
	}
	inside, doneInside, err := n.netlink()
	if err != nil {
		return err
	}
	defer doneInside()
	if err := address(inside, "lo", ""); err != nil {
		return err
	}
	return address(inside, portName, n.Address)
}

// address gives an interface its address, if any, and brings it up.
func address(h *netlink.Handle, name, ip string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("cannot find %s: %w", name, err)
	}
	if ip != "" {
		a, err := netlink.ParseAddr(ip + prefix)
		if err != nil {
			return err
		}
		if err := h.AddrAdd(link, a); err != nil {
			return fmt.Errorf("cannot give %s an address: %w", name, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("cannot bring %s up: %w", name, err)
	}
	return nil
}

// Cut takes the node off the network, or puts it back. Connections are not closed: their packets go nowhere.
func (n *Node) Cut(cut bool) error {
	h, done, err := n.netlink()
	if err != nil {
		return err
	}
	defer done()
	link, err := h.LinkByName(portName)
	if err != nil {
		return fmt.Errorf("cannot find %s of %s: %w", portName, n.Name, err)
	}
	change := h.LinkSetUp
	if cut {
		change = h.LinkSetDown
	}
	if err := change(link); err != nil {
		return fmt.Errorf("cannot change %s of %s: %w", portName, n.Name, err)
	}
	return nil
}

// netlink opens the node's network namespace for changes.
func (n *Node) netlink() (*netlink.Handle, func(), error) {
	ns, err := netns.GetFromPid(n.pid)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot open the network namespace of %s: %w", n.Name, err)
	}
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		hangUp(&ns)
		return nil, nil, fmt.Errorf("cannot open the network of %s: %w", n.Name, err)
	}
	return h, func() { h.Close(); hangUp(&ns) }, nil
}

// DialContext connects from the node's network namespace; it fits http.Transport and tls.Dialer's users. Names of nodes
// are known to it.
func (n *Node) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if ip, ok := addressOf(host); ok {
		host = ip
	}
	if net.ParseIP(host) == nil {
		return nil, fmt.Errorf("cannot find %q in the lab", host)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	dialed := make(chan result, 1)
	// The thread that changed its namespace is not given back: its goroutine ends locked, and the thread with it. A
	// socket belongs to the namespace in which it was made, and a literal address is dialled on the calling thread.
	go func() {
		runtime.LockOSThread()
		conn, err := func() (net.Conn, error) {
			ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.pid))
			if err != nil {
				return nil, fmt.Errorf("cannot open the network namespace of %s: %w", n.Name, err)
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return nil, fmt.Errorf("cannot enter the network namespace of %s: %w", n.Name, err)
			}
			var d net.Dialer
			return d.DialContext(ctx, network, net.JoinHostPort(host, port))
		}()
		dialed <- result{conn, err}
	}()
	r := <-dialed
	return r.conn, r.err
}

// addressOf knows the names of the lab's nodes.
func addressOf(name string) (string, bool) {
	switch name {
	case "outside":
		return outsideAddress, true
	case "verifier":
		return verifierAddress, true
	}
	var i int
	if _, err := fmt.Sscanf(name, "host%d", &i); err != nil || name != hostName(i) {
		return "", false
	}
	return hostAddress(i), true
}

func hostName(i int) string { return fmt.Sprintf("host%d", i) }

// errNotOwner is what a lab says that was attached to, when asked for what only its owner can do.
var errNotOwner = errors.New("only the program that built the lab can do that")

// Listen opens a listening socket in the node's network namespace: a socket stays in the namespace it was made in.
func (n *Node) Listen(address string) (net.Listener, error) {
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is in another namespace and ends with this goroutine
		l, err := func() (net.Listener, error) {
			f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.pid))
			if err != nil {
				return nil, fmt.Errorf("cannot open the network namespace of %s: %w", n.Name, err)
			}
			defer f.Close()
			if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
				return nil, fmt.Errorf("cannot enter the network namespace of %s: %w", n.Name, err)
			}
			return (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
		}()
		done <- result{l, err}
	}()
	r := <-done
	return r.l, r.err
}
