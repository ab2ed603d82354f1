// Package strays runs, on a real host, the guests that went round the gate and the ones that are not what was proved any more, and measures how long it
// takes until each is dealt with. It holds nothing but tests; it needs root and what `make deps` installs, and with -short it is left out.
package strays
