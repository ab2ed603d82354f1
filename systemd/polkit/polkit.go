// Package polkit is the rule that polkit evaluates for libvirt, as text: packages install the file, and troth-hostd's doctor compares
// what is installed with what this program was built with. It trusts nothing and does nothing.
package polkit

import _ "embed"

// Name is the rule's file name, in /usr/share/polkit-1/rules.d. It sorts before those of others, since polkit takes the first answer.
const Name = "00-troth.rules"

// Helper is what the rule runs to ask the registry.
const Helper = "/usr/libexec/troth/troth-registered"

// Rules is the file.
//
//go:embed 00-troth.rules
var Rules []byte
