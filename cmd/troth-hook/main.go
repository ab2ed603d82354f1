// Command troth-hook is libvirt's qemu hook (/etc/libvirt/hooks/qemu): it lets untrusted domains pass and asks hostd
// about trusted ones. All it does stands in package hooks.
//
// It lives for a millisecond, so it does not ask how many processors its control group grants (settings below).
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
package main

import (
	"os"

	"troth/hooks"
)

func main() { os.Exit(hooks.Main()) }
