// Command troth-hook is libvirt's qemu hook (/etc/libvirt/hooks/qemu): it lets untrusted domains pass and asks hostd
// about trusted ones. All it does stands in package hooks.
package main

import (
	"os"

	"troth/hooks"
)

func main() { os.Exit(hooks.Main()) }
