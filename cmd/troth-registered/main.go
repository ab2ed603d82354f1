// Command troth-registered tells polkit's rule (/usr/share/polkit-1/rules.d/00-troth.rules) whether a domain or a storage volume
// belongs to troth-hostd. It is no second face of troth-hook: libvirt puts a domain's name, which is anybody's choice, first on the
// hook's command line. All it does stands in package hooks.
package main

import (
	"os"

	"troth/hooks"
)

func main() { os.Exit(hooks.RegisteredMain()) }
