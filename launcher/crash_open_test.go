package launcher_test

import (
	"troth/hostd"
	"troth/launcher"
)

// The simulation opens the journal as the daemon does.
func init() { launcher.OpenBook = hostd.OpenBook }
