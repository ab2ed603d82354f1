package hostd

import "troth/launcher"

// Images measures real files.
type Images = launcher.Files
